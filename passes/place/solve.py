"""The cheapest options and moves, by integer program.

Per step o one of its options k is picked, s[o,k] in {0,1}. In each stream v the moves a that are
made, x[a], carry one unit of flow y[t,a] <= x[a] from the form in which the stream is made to each
form t that is taken of it (the multi-commodity formulation of directed Steiner trees, Wong 1984):

    min sum(cost_a x[a])      sum_k s[o,k] = 1      d[t] >= sum of s[o,k] that take t, each o
    flow into n - flow out of n + p[t,n] = d[t] if n = t else 0     p[t,n] <= sum of s[o,k] giving n

Streams that no choice joins are apart, and so are solved apart: each cluster by itself. The linear
relaxation is solved first; where it is integral it proves the answer. Else a search bounded by
nodes, not by time, so that the same program has the same answer. What is picked is priced exactly,
and taken only where it costs less than what the rules have.
"""

# pyright: basic
# (scipy says little of its types)

from __future__ import annotations

from collections.abc import Iterable, Sequence
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
)

NODES: Final = 10_000
WHOLE: Final = 1e-6
"""How far from a whole number the solver's results may be."""


class Solution(Struct, frozen=True):
    """The option of each step and the moves of each stream, with what is known of them.

    `cost` and `bound` are bytes that a rank sends in one run of the function; no placement that the
    instance allows is below `bound`. `ruled` is what the rules alone cost. `integral` says that the
    linear relaxation was; `variables` counts those of all clusters.
    """

    picks: tuple[int, ...]
    moves: tuple[tuple[Move, ...], ...]
    cost: Fraction
    bound: float
    ruled: Fraction
    variables: int
    integral: bool


class Cluster(Struct, frozen=True):
    """Steps and streams that choices join, by number."""

    steps: tuple[int, ...]
    streams: tuple[int, ...]


def solve(instance: Instance) -> Solution:
    """The cheapest solution found, never dearer than the rules'."""
    picks = [0] * len(instance.steps)
    moves = [stream.ruled for stream in instance.streams]
    bound, variables, integral = 0.0, 0, True
    for cluster in clusters(instance):
        ruled = sum((instance.streams[v].ruled_cost for v in cluster.streams), NOTHING)
        if not ruled:
            continue
        part = restricted(instance, cluster)
        prices = Prices(part)
        below, chosen, count, whole = relaxed(part)
        variables, integral = variables + count, integral and whole
        cost = None if chosen is None else prices.cost(chosen)
        if chosen is not None and cost is not None and cost < ruled:
            chosen = as_ruled(prices, chosen, cost)
            for step, pick in zip(cluster.steps, chosen, strict=True):
                picks[step] = pick
            for stream, (_, tree) in (prices.trees(chosen) or {}).items():
                taken = tuple(part.streams[stream].moves[n] for n in sorted(tree))
                moves[cluster.streams[stream]] = taken
        else:
            cost = ruled
        bound += min(below, float(cost))
    total = sum((move.cost for found in moves for move in found), NOTHING)
    return Solution(
        tuple(picks), tuple(moves), total, bound, instance.ruled_cost, variables, integral
    )


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


def program_of(instance: Instance, scale: float) -> tuple[Rows, list[list[int]]]:
    """The program, and the variable of each option of each step; costs are divided by scale."""
    rows = Rows()
    picks = [[rows.variable(whole=True) for _ in options] for options in instance.steps]
    takes: dict[tuple[int, int], dict[int, list[int]]] = {}
    gives: dict[tuple[int, int], list[int]] = {}
    for step, (options, own) in enumerate(zip(instance.steps, picks, strict=True)):
        rows.row([(each, 1.0) for each in own], 1.0, 1.0)
        for option, variable in zip(options, own, strict=True):
            for form in option.takes:
                takes.setdefault(form, {}).setdefault(step, []).append(variable)
            for form in option.gives:
                gives.setdefault(form, []).append(variable)
    for number, stream in enumerate(instance.streams):
        wanted = {form: users for (v, form), users in takes.items() if v == number}
        made = {form: makers for (v, form), makers in gives.items() if v == number}
        add_stream(rows, stream, wanted, made, scale)
    return rows, picks


def add_stream(
    rows: Rows,
    stream: Stream,
    wanted: dict[int, dict[int, list[int]]],
    made: dict[int, list[int]],
    scale: float,
) -> None:
    """The flows of a stream, from the forms in which it may be made to those that may be taken."""
    if set(wanted) <= set(made) and len(made) == 1:
        return
    moves = [rows.variable(float(move.cost) / scale) for move in stream.moves]
    for goal, users in wanted.items():
        demand = rows.variable()
        for variables in users.values():
            rows.row([(demand, 1.0), *((v, -1.0) for v in variables)], 0.0, float("inf"))
        balance: list[list[tuple[int, float]]] = [[] for _ in stream.forms]
        balance[goal].append((demand, -1.0))
        for move, made_move in zip(stream.moves, moves, strict=True):
            flow = rows.variable()
            rows.row([(made_move, 1.0), (flow, -1.0)], 0.0, float("inf"))
            balance[move.end].append((flow, 1.0))
            balance[move.begin].append((flow, -1.0))
        for form, makers in made.items():
            begins = rows.variable()
            rows.row([(begins, -1.0), *((v, 1.0) for v in makers)], 0.0, float("inf"))
            balance[form].append((begins, 1.0))
        for terms in balance:
            if terms:
                rows.row(terms, 0.0, 0.0)


def relaxed(instance: Instance) -> tuple[float, list[int] | None, int, bool]:
    """A bound in bytes, the options picked if any, the variables, and whether it was integral."""
    costs = [move.cost for stream in instance.streams for move in stream.moves]
    scale = float(max(costs, default=NOTHING)) or 1.0
    rows, picks = program_of(instance, scale)
    bound, answer = optimum(rows, whole=False)
    integral = answer is not None and all(
        abs(chance - round(chance)) <= WHOLE for own in chances(answer, picks) for chance in own
    )
    if not integral:
        tighter, answer = optimum(rows, whole=True)
        bound = max(bound, tighter)
    chosen = None
    if answer is not None:
        chosen = [values.index(max(values)) for values in chances(answer, picks)]
    return bound * scale, chosen, len(rows.costs), integral


def chances(answer: Sequence[float], picks: Sequence[Sequence[int]]) -> list[list[float]]:
    """What the solver gives each option of each step."""
    return [[answer[variable] for variable in own] for own in picks]


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
