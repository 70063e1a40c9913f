"""Which layers and which other ops each pipeline stage gets: even work, by cost.

The work of one micro-batch is a line of units: the ops before the first stack, each layer of it,
the ops up to the next stack, and so on. Stages are stretches of this line such that the costliest
is as cheap as can be.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from fllmc.passes.schedule.partition import partition


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

    There are at least as many groups and layers as stages.
    """
    costs: list[float] = []
    places: list[tuple[int, int]] = []
    for at, cost in enumerate(groups):
        costs.append(cost)
        places.append((at, -1))
        for layer, each in enumerate(stacks[at] if at < len(stacks) else ()):
            costs.append(each)
            places.append((at, layer))
    bounds = partition(costs, len(homes))
    stage_of = {
        place: stage
        for stage, (begin, end) in enumerate(pairwise(bounds))
        for place in places[begin:end]
    }
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
