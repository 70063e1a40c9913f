"""Several sources in fixed proportions: which source the n-th sample comes from, for any n."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy as np

from fllmc.ir import philox
from fllmc.runtime.data.windows import Batch, Samples


class Mixture:
    """Samples of several sources, each as often as its weight says.

    The j-th sample of a source falls due at time (j + phase) / share, where the phase is drawn
    once from the seed; samples are taken in the order in which they fall due. So every stretch of
    the run holds of each source what its share of it is, but for one sample each way and source,
    and nothing needs to be remembered.
    """

    def __init__(self, parts: Sequence[Samples], weights: Sequence[float], seed: int) -> None:
        total = sum(weights)
        self.parts = tuple(parts)
        self.shares = tuple(weight / total for weight in weights)
        key = philox.stream_key("mixture", seed)
        self.phases = tuple(philox.uniform64(key, 0, len(parts)).tolist())
        self.count = sum(part.count for part in parts)

    def due(self, part: int, number: int) -> float:
        """When the sample of a source falls due; about one sample falls due in a unit of time."""
        return (number + self.phases[part]) / self.shares[part]

    def fallen(self, part: int, time: float) -> int:
        """How many samples of a source fall due before a time."""
        number = max(0, ceil(time * self.shares[part] - self.phases[part]))
        while number and self.due(part, number - 1) >= time:
            number -= 1
        while self.due(part, number) < time:
            number += 1
        return number

    def chosen(self, first: int, count: int) -> list[tuple[int, int]]:
        """(source, its sample) of samples `first .. first + count`."""
        # Each source is off by less than one, so by this time no more than `first` have fallen due.
        time = float(max(0, first - 2 * len(self.parts)))
        begun = [self.fallen(part, time) for part in range(len(self.parts))]
        skipped = first - sum(begun)
        ahead = skipped + count + 2 * len(self.parts)
        events: list[tuple[float, int, int]] = []
        for part, number in enumerate(begun):
            more = ceil(ahead * self.shares[part]) + 2
            events += [(self.due(part, n), part, n) for n in range(number, number + more)]
        events.sort()
        return [(part, number) for _, part, number in events[skipped : skipped + count]]

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count` of the run."""
        chosen = self.chosen(first, count)
        columns: dict[str, list[np.ndarray]] = {}
        rows: dict[tuple[int, int], int] = {}
        for part, samples in enumerate(self.parts):
            numbers = [number for source, number in chosen if source == part]
            if not numbers:
                continue
            batch = samples.batch(numbers[0], len(numbers))
            given = {n: getattr(batch, n) for n in ("tokens", "targets", "weights")}
            before = len(rows)
            for name, column in (given | dict(batch.more)).items():
                columns.setdefault(name, []).append(column)
            rows |= {(part, number): before + at for at, number in enumerate(numbers)}
        order = [rows[each] for each in chosen]
        whole = {name: np.concatenate(parts)[order] for name, parts in columns.items()}
        tokens, targets, weights = (whole.pop(n) for n in ("tokens", "targets", "weights"))
        return Batch(tokens, targets, weights, whole)


class OneByOne:
    """Held-out samples of several sources, one source behind the other."""

    def __init__(self, parts: Sequence[Samples], samples: Sequence[int]) -> None:
        self.parts, self.ends = tuple(parts), np.cumsum(samples)
        self.count = sum(part.count for part in parts)
        self.samples = int(self.ends[-1])

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count`; those past the end have weight 0."""
        found: list[Batch] = []
        while count:
            at = min(int(np.searchsorted(self.ends, first, side="right")), len(self.parts) - 1)
            begin = int(self.ends[at - 1]) if at else 0
            last = at == len(self.parts) - 1
            taken = count if last else min(count, int(self.ends[at]) - first)
            found.append(self.parts[at].batch(first - begin, taken))
            first, count = first + taken, count - taken
        return found[0] if len(found) == 1 else joined(found)


def joined(found: Sequence[Batch]) -> Batch:
    """Batches one behind the other."""
    more = {n: np.concatenate([b.more[n] for b in found]) for n in found[0].more}
    tokens, targets, weights = (
        np.concatenate([getattr(b, name) for b in found])
        for name in ("tokens", "targets", "weights")
    )
    return Batch(tokens, targets, weights, more)
