"""Which values to keep so that the wanted ones can be had again: a minimum cut over bytes.

Each value is an edge whose capacity is what keeping it costs. What can't be recomputed hangs on the
source, wanted values on the sink, and operands feed what is recomputed from them without limit. The
values that cross the cheapest cut are kept, the wanted ones behind it are recomputed. Of several
cheapest cuts the one nearest to the wanted values is taken: it recomputes the least.
"""

# pyright: basic
# (networkx says little of its types)

from __future__ import annotations

import msgspec


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
    import networkx as nx  # slow to import, and `check` never gets here

    source, sink = 2 * len(choices.costs), 2 * len(choices.costs) + 1
    graph = nx.DiGraph()
    graph.add_nodes_from((source, sink))
    for start, end, capacity in _edges(choices, source, sink):
        graph.add_edge(start, end, capacity=capacity)
    flow = nx.algorithms.flow.dinitz(graph, source, sink)
    behind, todo = {sink}, [sink]
    while todo:
        node = todo.pop()
        for before in flow.pred[node]:
            edge = flow[before][node]
            if before not in behind and edge["capacity"] > edge["flow"]:
                behind.add(before)
                todo.append(before)
    values = range(len(choices.costs))
    return frozenset(v for v in values if 2 * v + 1 in behind and 2 * v not in behind)


def _edges(choices: Choices, source: int, sink: int) -> list[tuple[int, int, int]]:
    """(start, end, capacity); value v is the edge from node 2v to node 2v + 1."""
    unlimited = sum(cost for cost in choices.costs if cost is not None) + 1
    edges = [
        (2 * v, 2 * v + 1, unlimited if cost is None else cost)
        for v, cost in enumerate(choices.costs)
    ]
    edges += [(source, 2 * v, unlimited) for v in sorted(choices.fixed)]
    edges += [(2 * a + 1, 2 * b, unlimited) for a, b in sorted(set(choices.feeds))]
    edges += [(2 * v + 1, sink, unlimited) for v in sorted(set(choices.wanted))]
    return edges
