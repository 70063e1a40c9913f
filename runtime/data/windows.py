"""Samples: which tokens the n-th sample of a run is, for any n, on any process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.ir import philox
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors
from fllmc.runtime.data.documents import Array, Documents
from fllmc.runtime.data.middle import Middles, rearranged
from fllmc.runtime.data.rows import Reading, predicted, read_row

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class Batch(msgspec.Struct, frozen=True):
    """Samples `[batch, seq]`: tokens, the tokens that follow them, and each target's weight.

    `more` are the other columns by name.
    """

    tokens: Rows
    targets: Rows
    weights: Weights
    more: Mapping[str, Any] = {}

    def column(self, name: str) -> Array | None:
        """A column by its name, or None where the data has none of this name."""
        if name in ("tokens", "targets", "weights"):
            return getattr(self, name)
        return self.more.get(name)


def batch_of(rows: Sequence[dict[str, Array]]) -> Batch:
    """Samples by their columns."""
    whole = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    tokens, targets, weights = (whole.pop(n) for n in ("tokens", "targets", "weights"))
    return Batch(tokens, targets, weights, whole)


class Samples(Protocol):
    """Training samples, numbered from 0 without end."""

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count`: a pure function of these numbers."""
        ...

    @property
    def count(self) -> int:
        """Tokens to train on."""
        ...


class Windows:
    """Training samples: stretches of `seq` tokens, each with the token behind every one of them.

    An epoch cuts the first `stop` tokens into windows that do not overlap, from a random phase, and
    takes them in a random order. Phase and order depend on the seed and the epoch only, so sample
    `n` does not depend on how batches are sized or divided, and the position of a run is one
    number. `reading` keeps documents apart, which are cut where a window is.
    """

    def __init__(
        self,
        documents: Documents,
        seq: int,
        seed: int,
        source: str = "",
        span: Span = NOWHERE,
        *,
        stop: int | None = None,
        reading: Reading | None = None,
        middles: Middles | None = None,
    ) -> None:
        self.count = count = len(documents.tokens) if stop is None else stop
        if count < seq + 1:
            part = errors.TooFewTokens(span, source, "training", count, seq, seq + 1)
            raise DiagnosticError(part)
        self.documents, self.seq, self.seed = documents, seq, seed
        self.reading, self.middles = reading or Reading(), middles
        # As many windows as fit behind every phase; one, where the text is that short.
        self.per_epoch = max(1, (count - seq) // seq)
        self._phases = min(seq, count - self.per_epoch * seq)
        self._order = lru_cache(maxsize=2)(self._starts_of)  # a batch may straddle two epochs

    def _starts_of(self, epoch: int) -> Rows:
        key = philox.stream_key("windows", self.seed)
        phase = int(philox.words(key, np.zeros(1, np.int64), 2 * epoch)[0][0]) % self._phases
        order = philox.permutation(key, self.per_epoch, 2 * epoch + 1)
        return order * self.seq + phase

    def starts(self, samples: Rows) -> Rows:
        """The position of the first token of each sample."""
        epochs, within = np.divmod(samples, self.per_epoch)
        out = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = self._order(int(epoch))[within[chosen]]
        return out

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count` of the run."""
        samples = np.arange(first, first + count, dtype=np.int64)
        rows: list[dict[str, Array]] = []
        for sample, start in zip(samples.tolist(), self.starts(samples).tolist(), strict=True):
            row = read_row(self.documents, start, start + self.seq + 1, self.reading)
            row = rearranged(row, self.middles, sample)
            rows.append(predicted(row, self.reading.apart))
        return batch_of(rows)


class HeldOut:
    """Validation samples: every token from `first` on is a target exactly once, in order.

    The first one is predicted from the token in front of it (the last one trained on), unless
    documents are kept apart. The last window is filled up with weight 0.
    """

    def __init__(
        self,
        documents: Documents,
        first: int,
        seq: int,
        source: str = "",
        span: Span = NOWHERE,
        reading: Reading | None = None,
    ) -> None:
        self.seq, self.count = seq, len(documents.tokens) - first
        if self.count <= 0:
            raise DiagnosticError(errors.TooFewTokens(span, source, "held-out", 0, seq, 1))
        self.documents, self.before = documents, first - 1
        self.reading = reading or Reading()
        self.samples = -(-self.count // seq)

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count`; those past the end have weight 0."""
        rows: list[dict[str, Array]] = []
        for sample in range(first, first + count):
            start = self.before + sample * self.seq
            row = read_row(self.documents, start, start + self.seq + 1, self.reading)
            rows.append(predicted(row, self.reading.apart))
        return batch_of(rows)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples, `size` at a time; weights sum to `count`, unless some do not count."""
        for first in range(0, self.samples, size):
            yield self.batch(first, size)
