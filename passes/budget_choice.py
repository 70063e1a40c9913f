"""Which values to keep under a budget of bytes so that getting back the others takes least time.

An integer program. x_v: value v is kept. r_s: step s is run again. Every wanted value is kept or
made again, and a step that is run again has each of its operands kept or made again:

    min sum(t_s r_s)   x_v + r_maker(v) >= 1 for wanted v
                       r_s <= x_u + r_maker(u) for each operand u of s,  sum(b_v x_v) <= budget

The linear relaxation is solved first: where it is integral it is the answer. Else a search bounded
by nodes, not by time, so that the same instance has the same answer.
"""

# pyright: basic
# (scipy says little of its types)

from __future__ import annotations

from typing import Final

import msgspec

from fllmc.passes.cut import Choices, values_to_keep

NODES: Final = 10_000
WHOLE: Final = 1e-6
"""How far from a whole number the solver's results may be."""


class Step(msgspec.Struct, frozen=True):
    """Something that can be run again: what it takes, what it gives, and its seconds."""

    operands: tuple[int, ...]
    results: tuple[int, ...]
    seconds: float


class Instance(msgspec.Struct, frozen=True):
    """Values by number: bytes for keeping each, None where it can't be; the steps; the wanted."""

    costs: tuple[int | None, ...]
    steps: tuple[Step, ...]
    wanted: tuple[int, ...]


class Choice(msgspec.Struct, frozen=True):
    """The values that are kept, their bytes, the seconds for the others, and a bound below it.

    `bound` is what the solver proves that no choice is below; it equals `seconds` at the optimum.
    """

    kept: tuple[int, ...]
    bytes: int
    seconds: float
    bound: float

    @property
    def gap(self) -> float:
        """How far from optimal the choice can be at most, as a share of its seconds."""
        return 0.0 if self.seconds <= self.bound else 1 - self.bound / self.seconds


def fewest_bytes(instance: Instance) -> frozenset[int]:
    """The values to keep when time does not count: a minimum cut."""
    made = {value for step in instance.steps for value in step.results}
    feeds = tuple((a, v) for step in instance.steps for a in step.operands for v in step.results)
    fixed = frozenset(range(len(instance.costs))) - made
    return values_to_keep(Choices(instance.costs, fixed, feeds, instance.wanted))


def bytes_of(instance: Instance, kept: frozenset[int]) -> int:
    """What keeping these values takes."""
    return sum(instance.costs[value] or 0 for value in kept)


def redone(instance: Instance, kept: frozenset[int]) -> frozenset[int]:
    """The steps that have to be run again, by number; KeyError where something can't be had."""
    makers = {value: at for at, step in enumerate(instance.steps) for value in step.results}
    found: set[int] = set()
    todo = [value for value in instance.wanted if value not in kept]
    while todo:
        at = makers[todo.pop()]
        if at not in found:
            found.add(at)
            todo += [value for value in instance.steps[at].operands if value not in kept]
    return frozenset(found)


def seconds_of(instance: Instance, kept: frozenset[int]) -> float:
    """The time that getting back the other values takes."""
    return sum(instance.steps[at].seconds for at in sorted(redone(instance, kept)))


def choose(instance: Instance, budget: int) -> Choice:
    """The values to keep. Precondition: the fewest bytes are within the budget."""
    fallback = fewest_bytes(instance)
    bound, kept = solved(instance, budget)
    if kept is None or bytes_of(instance, kept) > budget:
        kept = fallback
    kept = needed(instance, kept)
    seconds = seconds_of(instance, kept)
    return Choice(tuple(sorted(kept)), bytes_of(instance, kept), seconds, min(bound, seconds))


def needed(instance: Instance, kept: frozenset[int]) -> frozenset[int]:
    """The values without those that could go at no cost of time, largest first."""
    have, now = kept, seconds_of(instance, kept)
    for value in sorted(kept, key=lambda v: (-(instance.costs[v] or 0), v)):
        fewer = have - {value}
        try:
            spared = seconds_of(instance, fewer) <= now
        except KeyError:
            continue
        have = fewer if spared else have
    return have


def solved(instance: Instance, budget: int) -> tuple[float, frozenset[int] | None]:
    """A bound on the seconds, and the values that the integer program keeps, if any."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    count, size = len(instance.costs), len(instance.costs) + len(instance.steps)
    rows = inequalities(instance)
    data = [(number, at, by) for number, (terms, _) in enumerate(rows) for at, by in terms]
    share = max(budget, 1)
    data += [(len(rows), v, cost / share) for v, cost in enumerate(instance.costs) if cost]
    numbers, places, values = zip(*data, strict=True)
    matrix = coo_matrix((values, (numbers, places)), shape=(len(rows) + 1, size)).tocsr()
    least = np.array([low for _, low in rows] + [-np.inf])
    most = np.array([np.inf] * len(rows) + [budget / share])
    scale = max((step.seconds for step in instance.steps), default=0.0) or 1.0
    cost = np.array([0.0] * count + [step.seconds / scale for step in instance.steps])
    high = np.array([0.0 if c is None else 1.0 for c in instance.costs] + [1.0] * (size - count))

    def run(whole: int) -> tuple[float, list[float] | None]:
        """The proven bound, and the solution."""
        found = milp(
            cost,
            integrality=np.full(size, whole),
            bounds=Bounds(np.zeros(size), high),  # pyright: ignore[reportArgumentType]
            constraints=LinearConstraint(matrix, least, most),  # pyright: ignore[reportArgumentType]
            options={"node_limit": NODES, "mip_rel_gap": 0.0},
        )
        if found.x is None:
            return 0.0, None
        proven = found.fun if found.mip_dual_bound is None else found.mip_dual_bound
        return float(proven), list(found.x)

    bound, answer = run(0)
    if answer is None or any(abs(x - round(x)) > WHOLE for x in answer):
        relaxation = bound
        bound, answer = run(1)
        bound = max(bound, relaxation)
    kept = None if answer is None else frozenset(v for v in range(count) if answer[v] > 0.5)
    return bound * scale, kept


def inequalities(instance: Instance) -> list[tuple[list[tuple[int, float]], float]]:
    """Rows of (variable, factor) that are at least a number; values come first, then steps."""
    count = len(instance.costs)
    makers = {value: count + at for at, step in enumerate(instance.steps) for value in step.results}

    def at_hand(value: int) -> list[tuple[int, float]]:
        return [(value, 1.0)] + ([(makers[value], 1.0)] if value in makers else [])

    rows = [(at_hand(value), 1.0) for value in instance.wanted]
    for at, step in enumerate(instance.steps):
        for operand in dict.fromkeys(step.operands):
            rows.append(([*at_hand(operand), (count + at, -1.0)], 0.0))
    return rows
