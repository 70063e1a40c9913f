"""Which values to keep so that the wanted ones can be had again: a minimum cut over bytes.

Each value is an edge whose capacity is what keeping it costs. What can't be recomputed hangs on the
source, wanted values on the sink, and operands feed what is recomputed from them without limit. The
values that cross the cheapest cut are kept, the wanted ones behind it are recomputed. Of several
cheapest cuts the one nearest to the wanted values is taken: it recomputes the least.
"""

from __future__ import annotations

from math import gcd
from typing import Any, Final

import msgspec

LIMIT: Final = 2**30
"""Capacities are scaled so that their sum stays below this: the solver's numbers have 32 bits."""


class Choices(msgspec.Struct, frozen=True):
    """What is known of `len(costs)` values, by number.

    `costs` are bytes for keeping a value, None where it can't be kept. `fixed` are values that
    can't be recomputed. `feeds` are pairs (operand, result) of the ops that can be run again.
    """

    costs: tuple[int | None, ...]
    fixed: frozenset[int]
    feeds: tuple[tuple[int, int], ...]
    wanted: tuple[int, ...]


def values_to_keep(choices: Choices) -> frozenset[int]:
    """The values that cross the cheapest cut. Values that cost nothing may be among them.

    Precondition: every chain from a fixed to a wanted value has one that can be kept.
    """
    from numpy import array, int32
    from scipy.sparse import csr_array  # slow to import, and `check` never gets here
    from scipy.sparse.csgraph import breadth_first_order, maximum_flow

    edges = _edges(choices)
    source, sink = 2 * len(choices.costs), 2 * len(choices.costs) + 1
    starts, ends, capacities = zip(*edges, strict=True)
    size = (sink + 1, sink + 1)
    graph: Any = csr_array((array(capacities, dtype=int32), (starts, ends)), shape=size)
    left: Any = graph - maximum_flow(graph, source, sink).flow
    left.eliminate_zeros()
    backwards = csr_array(left.T)
    behind = set(breadth_first_order(backwards, sink, return_predecessors=False).tolist())
    values = range(len(choices.costs))
    return frozenset(v for v in values if 2 * v + 1 in behind and 2 * v not in behind)


def _edges(choices: Choices) -> list[tuple[int, int, int]]:
    """(start, end, capacity); value v is the edge from node 2v to node 2v + 1."""
    costs = _scaled(choices.costs)
    unlimited = sum(cost for cost in costs if cost is not None) + 1
    source, sink = 2 * len(costs), 2 * len(costs) + 1
    edges = [
        (2 * v, 2 * v + 1, unlimited if cost is None else cost) for v, cost in enumerate(costs)
    ]
    edges += [(source, 2 * v, unlimited) for v in sorted(choices.fixed)]
    edges += [(2 * a + 1, 2 * b, unlimited) for a, b in sorted(set(choices.feeds))]
    edges += [(2 * v + 1, sink, unlimited) for v in sorted(set(choices.wanted))]
    return edges


def _scaled(costs: tuple[int | None, ...]) -> list[int | None]:
    """Costs in their greatest common unit, or in a coarser one when they would not fit."""
    known = [cost for cost in costs if cost is not None]
    unit = max(gcd(*known), 1)
    if sum(known) // unit >= LIMIT:
        unit = -(-sum(known) // (LIMIT - len(known) - 1))
    return [None if cost is None else -(-cost // unit) for cost in costs]
