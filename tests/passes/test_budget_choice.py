"""Keeping under a budget: never over it, never slower than the best of all choices."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fllmc.passes.budget_choice import (
    Instance,
    Step,
    bytes_of,
    choose,
    fewest_bytes,
    seconds_of,
)


@st.composite
def instances(draw: st.DrawFn) -> Instance:
    """A few inputs, then steps that each take some earlier values."""
    inputs = draw(st.integers(1, 3))
    costs: list[int | None] = [draw(st.integers(0, 20)) for _ in range(inputs)]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 9))):
        taken = draw(st.sets(st.integers(0, len(costs) - 1), min_size=1, max_size=3))
        results = tuple(len(costs) + n for n in range(draw(st.integers(1, 2))))
        costs += [draw(st.none() | st.integers(0, 20)) for _ in results]
        steps.append(Step(tuple(sorted(taken)), results, float(draw(st.integers(0, 9)))))
    wanted = draw(st.sets(st.integers(0, len(costs) - 1), min_size=1, max_size=4))
    return Instance(tuple(costs), tuple(steps), tuple(sorted(wanted)))


def best(instance: Instance, budget: int) -> float:
    """The least seconds over all sets of values that fit."""
    found = float("inf")
    can = [value for value, cost in enumerate(instance.costs) if cost is not None]
    for size in range(len(can) + 1):
        for values in combinations(can, size):
            kept = frozenset(values)
            if bytes_of(instance, kept) <= budget:
                try:
                    found = min(found, seconds_of(instance, kept))
                except KeyError:
                    continue
    return found


@settings(max_examples=120, deadline=None)
@given(instances(), st.floats(0, 1))
def test_the_choice_fits_and_is_the_fastest(instance: Instance, share: float) -> None:
    least = bytes_of(instance, fewest_bytes(instance))
    most = sum(cost or 0 for cost in instance.costs)
    budget = least + int(share * (most - least))
    choice = choose(instance, budget)
    assert choice.bytes == bytes_of(instance, frozenset(choice.kept)) <= budget
    assert choice.seconds == pytest.approx(seconds_of(instance, frozenset(choice.kept)))
    assert choice.seconds == pytest.approx(best(instance, budget))
    assert choice.bound <= choice.seconds + 1e-9


@settings(max_examples=60, deadline=None)
@given(instances())
def test_more_room_is_never_slower(instance: Instance) -> None:
    least = bytes_of(instance, fewest_bytes(instance))
    times = [choose(instance, least + more).seconds for more in (0, 5, 20, 200)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == min(times)


def test_a_chain_costs_what_leads_to_it() -> None:
    """The last of four values is wanted; each step costs a second, and keeping each a byte."""
    steps = tuple(Step((n,), (n + 1,), 1.0) for n in range(3))
    chain = Instance((0, 1, 1, 2), steps, (3,))
    assert [choose(chain, budget).seconds for budget in (0, 1, 2)] == [3.0, 1.0, 0.0]
    assert choose(chain, 1).kept == (2,)
