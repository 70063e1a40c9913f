"""The cheapest options and moves, by integer program.

Per step o one of its options k is picked, s[o,k] in {0,1}. In each stream the moves a that are
made, x[a], carry one unit of flow for each step o that takes of the stream, from the form that its
maker gives to the form that o takes (the multi-commodity formulation of directed Steiner trees,
Wong 1984, whose ends here depend on picks):

    min sum(cost_a x[a])      sum_k s[o,k] = 1      y[o,a] <= x[a]
    flow y[o] into n - flow out of n + sum of s that give n - sum of s[o,k] that take n = 0

Streams that no choice joins are apart, and so are solved apart: each cluster by itself. The linear
relaxation is solved first; where the rules, or what it rounds to, cost what it proves, that is all.
Else a search bounded by nodes, not by time, so that the same program has the same answer. What is
picked is priced exactly, and taken only where it costs less than what the rules have.
"""

# pyright: basic
# (scipy says little of its types)

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from typing import Final

from msgspec import Struct

from fllmc.passes.place.choices import (
    NOTHING,
    Instance,
    Move,
    Option,
    Prices,
    Stream,
    needs,
)

NODES: Final = 10_000
NEAR: Final = 1e-6
"""How far from a bound, in parts of the largest move, a cost may be that equals it."""


class Solution(Struct, frozen=True):
    """The option of each step and the moves of each stream, with what is known of them.

    `cost` and `bound` are bytes that a rank sends in one run of the function; no placement that the
    instance allows is below `bound`. `ruled` is what the rules alone cost; `apart` what it costs to
    move values anew for each step that takes them. `relaxed` says that the linear relaxation proves
    as much; `variables` counts those of all clusters.
    """

    picks: tuple[int, ...]
    moves: tuple[tuple[Move, ...], ...]
    cost: Fraction
    bound: float
    ruled: Fraction
    apart: Fraction
    variables: int
    relaxed: bool


class Cluster(Struct, frozen=True):
    """Steps and streams that choices join, by number."""

    steps: tuple[int, ...]
    streams: tuple[int, ...]


def solve(instance: Instance) -> Solution:
    """The cheapest solution found, never dearer than the rules'."""
    picks = [0] * len(instance.steps)
    moves = [stream.ruled for stream in instance.streams]
    bound, variables, relaxed = 0.0, 0, True
    for cluster in clusters(instance):
        ruled = sum((instance.streams[v].ruled_cost for v in cluster.streams), NOTHING)
        if not ruled:
            continue
        part = restricted(instance, cluster)
        prices = Prices(part)
        found = cheapest(prices, ruled)
        variables, relaxed = variables + found.variables, relaxed and found.relaxed
        if found.picks is not None:
            chosen = as_ruled(prices, found.picks, found.cost)
            for step, pick in zip(cluster.steps, chosen, strict=True):
                picks[step] = pick
            for stream, (_, tree) in (prices.trees(chosen) or {}).items():
                taken = tuple(part.streams[stream].moves[n] for n in sorted(tree))
                moves[cluster.streams[stream]] = taken
        bound += found.bound
    total = sum((move.cost for found in moves for move in found), NOTHING)
    apart = cost_apart(instance, picks)
    chosen = tuple(picks), tuple(moves)
    return Solution(*chosen, total, bound, instance.ruled_cost, apart, variables, relaxed)


def cost_apart(instance: Instance, picks: Sequence[int]) -> Fraction:
    """What the options cost if no step had the moves made for another."""
    prices, made = Prices(instance), needs(instance, picks)
    taken = [
        prices.tree(stream, made[stream][0], (form,))
        for options, pick in zip(instance.steps, picks, strict=True)
        for stream, form in options[pick].takes
    ]
    return sum((tree[0] for tree in taken if tree is not None), NOTHING)


def clusters(instance: Instance) -> tuple[Cluster, ...]:
    """The parts that choose apart: steps with a choice join the streams that it changes."""
    parent = list(range(len(instance.streams)))

    def root(stream: int) -> int:
        while parent[stream] != stream:
            stream = parent[stream]
        return stream

    for options in instance.steps:
        joined = sorted(chosen_streams(options))
        for stream in joined[1:]:
            a, b = sorted((root(joined[0]), root(stream)))
            parent[b] = a
    members: dict[int, list[int]] = {}
    for stream in range(len(instance.streams)):
        members.setdefault(root(stream), []).append(stream)
    steps: dict[int, list[int]] = {first: [] for first in members}
    for number, options in enumerate(instance.steps):
        touched = {root(v) for option in options for v, _ in (*option.takes, *option.gives)}
        for first in sorted(touched):
            steps[first].append(number)
    return tuple(Cluster(tuple(steps[first]), tuple(found)) for first, found in members.items())


def chosen_streams(options: Sequence[Option]) -> set[int]:
    """The streams of which options take or give different forms."""
    seen: dict[int, set[frozenset[tuple[bool, int]]]] = {}
    everywhere = {v for option in options for v, _ in (*option.takes, *option.gives)}
    for option in options:
        for stream in sorted(everywhere):
            own = [(True, f) for v, f in option.takes if v == stream]
            own += [(False, f) for v, f in option.gives if v == stream]
            seen.setdefault(stream, set()).add(frozenset(own))
    return {stream for stream, uses in seen.items() if len(uses) > 1}


def restricted(instance: Instance, cluster: Cluster) -> Instance:
    """The cluster alone, its streams numbered anew."""
    number = {stream: at for at, stream in enumerate(cluster.streams)}

    def own(forms: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
        return tuple((number[v], form) for v, form in forms if v in number)

    steps = tuple(
        tuple(Option(own(option.takes), own(option.gives)) for option in instance.steps[step])
        for step in cluster.steps
    )
    return Instance(tuple(instance.streams[v] for v in cluster.streams), steps)


def as_ruled(prices: Prices, picks: Sequence[int], cost: Fraction) -> list[int]:
    """The picks, with the rules' option wherever that alone costs no more."""
    kept = list(picks)
    for step, pick in enumerate(picks):
        kept[step] = 0
        now = prices.cost(kept)
        if now is None or now > cost:
            kept[step] = pick
    return kept


class Rows:
    """A linear program being written down: variables in [0, 1], costs, and rows of terms."""

    def __init__(self) -> None:
        self.costs: list[float] = []
        self.whole: list[int] = []
        self.terms: list[tuple[int, int, float]] = []
        self.low: list[float] = []
        self.high: list[float] = []

    def variable(self, cost: float = 0.0, whole: bool = False) -> int:
        """A new variable."""
        self.costs.append(cost)
        self.whole.append(int(whole))
        return len(self.costs) - 1

    def row(self, terms: Iterable[tuple[int, float]], low: float, high: float) -> None:
        """low <= sum of terms <= high."""
        self.terms += [(len(self.low), variable, factor) for variable, factor in terms]
        self.low.append(low)
        self.high.append(high)


Goals = tuple[tuple[int, tuple[int, ...]], ...]
"""The forms that a step may take of a stream, with the options that do."""


def program_of(instance: Instance, scale: float) -> tuple[Rows, list[list[int]]]:
    """The program, and the variable of each option of each step; costs are divided by scale."""
    rows = Rows()
    picks = [[rows.variable(whole=True) for _ in options] for options in instance.steps]
    wanted: list[dict[Goals, None]] = [{} for _ in instance.streams]
    made: list[list[tuple[int, int]]] = [[] for _ in instance.streams]
    for options, own in zip(instance.steps, picks, strict=True):
        rows.row([(each, 1.0) for each in own], 1.0, 1.0)
        for option, variable in zip(options, own, strict=True):
            for stream, form in option.gives:
                made[stream].append((form, variable))
        for stream in dict.fromkeys(v for option in options for v, _ in option.takes):
            for goals in goals_of(options, own, stream):
                wanted[stream][goals] = None
    for stream, goals, makers in zip(instance.streams, wanted, made, strict=True):
        add_stream(rows, stream, tuple(goals), makers, scale)
    return rows, picks


def goals_of(options: Sequence[Option], own: Sequence[int], stream: int) -> Iterator[Goals]:
    """What a step takes of a stream; twice where an option takes two forms of it, and so on."""
    taken = [[form for v, form in option.takes if v == stream] for option in options]
    for number in range(max(map(len, taken))):
        found: dict[int, list[int]] = {}
        for forms, variable in zip(taken, own, strict=True):
            found.setdefault(forms[min(number, len(forms) - 1)], []).append(variable)
        yield tuple((form, tuple(variables)) for form, variables in found.items())


def add_stream(
    rows: Rows,
    stream: Stream,
    wanted: Sequence[Goals],
    makers: Sequence[tuple[int, int]],
    scale: float,
) -> None:
    """The flows of a stream, from the forms in which it may be made to those that may be taken."""
    if len(stream.forms) == 1:
        return
    moves = [rows.variable(float(move.cost) / scale) for move in stream.moves]
    for goals in wanted:
        balance: list[list[tuple[int, float]]] = [[] for _ in stream.forms]
        for form, maker in makers:
            balance[form].append((maker, 1.0))
        for form, users in goals:
            balance[form] += [(user, -1.0) for user in users]
        for move, made in zip(stream.moves, moves, strict=True):
            flow = rows.variable()
            rows.row([(made, 1.0), (flow, -1.0)], 0.0, float("inf"))
            balance[move.end].append((flow, 1.0))
            balance[move.begin].append((flow, -1.0))
        for terms in balance:
            if terms:
                rows.row(terms, 0.0, 0.0)


class Found(Struct, frozen=True):
    """What was found for a cluster; `picks` is None where nothing costs less than the rules."""

    picks: list[int] | None
    cost: Fraction
    bound: float
    variables: int
    relaxed: bool


def cheapest(prices: Prices, ruled: Fraction) -> Found:
    """The cheapest options of a cluster for which the rules' cost `ruled`.

    Without any option to pick the cheapest moves are that. Else the linear relaxation is enough
    where its answer, or the rules', costs what it proves.
    """
    if all(len(options) == 1 for options in prices.instance.steps):
        only = [0] * len(prices.instance.steps)
        least = prices.cost(only)
        assert least is not None
        return Found(only if least < ruled else None, least, float(least), 0, True)
    costs = [move.cost for stream in prices.instance.streams for move in stream.moves]
    scale = float(max(costs, default=NOTHING)) or 1.0
    rows, picks = program_of(prices.instance, scale)
    best: list[int] | None = None
    cost, bound, proved = ruled, 0.0, False
    for whole in (False, True):
        below, answer = optimum(rows, whole)
        bound = max(bound, below * scale)
        chosen = None if answer is None else likeliest(answer, picks)
        price = None if chosen is None else prices.cost(chosen)
        if price is not None and price < cost:
            best, cost = chosen, price
        proved = float(cost) - bound <= NEAR * scale
        if proved:
            break
    return Found(best, cost, min(bound, float(cost)), len(rows.costs), proved and not whole)


def likeliest(answer: Sequence[float], picks: Sequence[Sequence[int]]) -> list[int]:
    """Of each step the option that the solver gives most, the first of those."""
    given = [[answer[variable] for variable in own] for own in picks]
    return [each.index(max(each)) for each in given]


def optimum(rows: Rows, whole: bool) -> tuple[float, list[float] | None]:
    """The proven bound and the solution of the program, its options whole or not."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    numbers, places, factors = zip(*rows.terms, strict=True)
    size = len(rows.costs)
    matrix = coo_matrix((factors, (numbers, places)), shape=(len(rows.low), size)).tocsr()
    found = milp(
        np.array(rows.costs),
        integrality=np.array(rows.whole) if whole else np.zeros(size),
        bounds=Bounds(np.zeros(size), np.ones(size)),  # pyright: ignore[reportArgumentType]
        constraints=LinearConstraint(matrix, rows.low, rows.high),  # pyright: ignore
        options={"node_limit": NODES, "mip_rel_gap": 0.0},
    )
    if found.x is None:
        return 0.0, None
    proven = found.fun if found.mip_dual_bound is None else found.mip_dual_bound
    return float(proven), list(found.x)
