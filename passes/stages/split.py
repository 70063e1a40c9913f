"""Which layers and which other ops each pipeline stage gets: even work, by cost.

The work of one micro-batch is a line of units: the ops before the first stack, each layer of it,
the ops up to the next stack, and so on. Stages are stretches of this line such that the costliest
is as cheap as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import msgspec


class Split(msgspec.Struct, frozen=True):
    """Where the units of a body live.

    `groups[i]` is the stage of the ops between stack i - 1 and stack i. `layers[i][stage]` is the
    range (first, count) of the layers of stack i; count may be 0. `homes[stage]` is its rank.
    """

    homes: tuple[int, ...]
    groups: tuple[int, ...]
    layers: tuple[tuple[tuple[int, int], ...], ...]

    @property
    def stages(self) -> int:
        """The number of stages."""
        return len(self.homes)


def even_split(
    groups: Sequence[float], stacks: Sequence[Sequence[float]], homes: Sequence[int]
) -> Split:
    """The split with the least greatest cost of a stage, for costs of groups and layers.

    There are at least as many layers as stages less two, and the first and last group may share
    theirs with layers or not.
    """
    costs: list[float] = []
    places: list[tuple[int, int]] = []
    for at, cost in enumerate(groups):
        costs.append(cost)
        places.append((at, -1))
        for layer, each in enumerate(stacks[at] if at < len(stacks) else ()):
            costs.append(each)
            places.append((at, layer))
    stages = stretches(costs, len(homes))
    stage_of = dict(zip(places, stages, strict=True))
    layers: list[tuple[tuple[int, int], ...]] = []
    for at, each in enumerate(stacks):
        own = [stage_of[at, layer] for layer in range(len(each))]
        layers.append(
            tuple(
                (own.index(stage) if stage in own else 0, own.count(stage))
                for stage in range(len(homes))
            )
        )
    found = tuple(stage_of[at, -1] for at in range(len(groups)))
    return Split(tuple(homes), found, tuple(layers))


def stretches(costs: Sequence[float], count: int) -> list[int]:
    """The stage of each unit: `count` stretches, none empty, their greatest sum least.

    Of the best, the one that fills the last stages first, as early ones hold more micro-batches.
    """
    sums = [0.0, *accumulate(costs)]
    total = len(costs)
    best = [[float("inf")] * (total + 1) for _ in range(count + 1)]
    start = [[0] * (total + 1) for _ in range(count + 1)]
    best[0][0] = 0.0
    for stages in range(1, count + 1):
        for end in range(stages, total + 1):
            for begin in range(end - 1, stages - 2, -1):
                own = sums[end] - sums[begin]
                if own >= best[stages][end]:
                    break
                worst = max(best[stages - 1][begin], own)
                if worst < best[stages][end]:
                    best[stages][end] = worst
                    start[stages][end] = begin
    found: list[int] = []
    end = total
    for stages in range(count, 0, -1):
        begin = start[stages][end]
        found[:0] = [stages - 1] * (end - begin)
        end = begin
    return found
