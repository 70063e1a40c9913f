"""Keeping under a budget: never over it, never slower than the best of all choices."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fllmc.passes import budget_choice
from fllmc.passes.budget_choice import (
    Away,
    Choice,
    Held,
    Instance,
    Step,
    Window,
    bytes_of,
    choose,
    fewest_bytes,
    host_bytes_of,
    seconds_of,
)

Chooser = Callable[[Instance, int], Choice]


def drawn(seed: int) -> Instance:
    """A few inputs, then steps that each take some earlier values; at most ten values.

    Some values can't be kept on the device, some can wait in host memory, which is small.
    """
    source = random.Random(seed)
    costs: list[int | None] = [source.randint(0, 20) for _ in range(source.randint(1, 3))]
    steps: list[Step] = []
    while len(costs) < 9 and (not steps or source.random() < 0.8):
        taken = source.sample(range(len(costs)), min(len(costs), source.randint(1, 3)))
        results = tuple(len(costs) + n for n in range(source.randint(1, 2)))
        costs += [source.choice([None, *range(1, 21)]) for _ in results]
        steps.append(Step(tuple(sorted(taken)), results, float(source.randint(0, 9))))
    away = tuple(
        Away(source.randint(1, 20), float(source.randint(1, 9))) if source.random() < 0.6 else None
        for _ in costs
    )
    wanted = source.sample(range(len(costs)), min(len(costs), source.randint(1, 4)))
    host = source.choice([0, source.randint(0, 40)])
    windows = tuple(
        Window(first, stop, float(source.randint(0, 4)))
        for first, stop in source.choice([(), ((0, len(costs)),), ((0, 3), (3, 6))])
        for _ in range(2)
    )
    return Instance(tuple(costs), tuple(steps), tuple(sorted(wanted)), away, host, windows)


instances = st.builds(drawn, st.integers(0, 10**9))


def all_choices(instance: Instance) -> list[tuple[int, float]]:
    """Bytes on the device and seconds of all that can be chosen, 3^n, within host memory."""
    ways = [
        ("again", *(["kept"] if cost is not None else []), *(["away"] if way else []))
        for cost, way in zip(instance.costs, instance.away, strict=True)
    ]
    found: list[tuple[int, float]] = []
    for picked in product(*ways):
        kept, away = (
            frozenset(v for v, way in enumerate(picked) if way == wanted)
            for wanted in ("kept", "away")
        )
        held = Held(kept, away)
        if host_bytes_of(instance, held) <= instance.host:
            try:
                found.append((bytes_of(instance, held), seconds_of(instance, held)))
            except KeyError:
                continue
    return found


def mistake(instance: Instance, share: float, choice_of: Chooser) -> str:
    """What is wrong with the choice for a budget, of all that one can have; empty for nothing."""
    choices = all_choices(instance)
    if not choices:
        return ""  # something that is wanted can be had in no way
    least = min(size for size, _ in choices)
    most = sum(cost or 0 for cost in instance.costs)
    budget = least + int(share * (most - least))
    choice = choice_of(instance, budget)
    held = Held(frozenset(choice.kept), frozenset(choice.away))
    if choice.bytes != bytes_of(instance, held) or choice.bytes > budget:
        return f"{choice.bytes} bytes of {budget}"
    if choice.host_bytes != host_bytes_of(instance, held) or choice.host_bytes > instance.host:
        return f"{choice.host_bytes} bytes on the host of {instance.host}"
    fastest = min(seconds for size, seconds in choices if size <= budget)
    seconds = (choice.seconds, seconds_of(instance, held))
    if seconds != pytest.approx((fastest, fastest)) or choice.bound > choice.seconds + 1e-9:
        return f"{seconds} seconds where {fastest} would do, at least {choice.bound}"
    return ""


@settings(max_examples=60, deadline=None)
@given(instances, st.floats(0, 1))
def test_the_choice_fits_and_is_the_fastest_of_all(instance: Instance, share: float) -> None:
    assert mistake(instance, share, choose) == ""


@settings(max_examples=60, deadline=None)
@given(instances)
def test_fewest_bytes_are_fewest(instance: Instance) -> None:
    choices = all_choices(instance)
    if choices:
        assert bytes_of(instance, fewest_bytes(instance)) == min(size for size, _ in choices)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[waits[v].seconds / scale if", "[-waits[v].seconds / scale if"),
        ("[step.seconds / scale for step", "[-step.seconds / scale for step"),
        ("rows.append(Row(tuple(terms), high=budget / share))", "pass"),
        ("rows.append(Row(tuple(terms), high=instance.host / share))", "pass"),
        ("(first + at, -1.0)), low=0.0)", "(first + at, -1.0)), low=-1.0)"),
        ("        + sum(waits[value].seconds for", "        - sum(waits[value].seconds for"),
        ("low=-window.seconds / scale", "low=window.seconds / scale"),
        ("-a.seconds / 2 / scale) for", "-a.seconds / scale) for"),
    ],
)
def test_a_bug_in_the_choice_shows(old: str, new: str) -> None:
    source = Path(budget_choice.__file__).read_text()
    assert source.count(old) == 1
    planted = ModuleType("planted")
    exec(compile(source.replace(old, new), "planted", "exec"), planted.__dict__)

    assert any(wrong(instance, planted.choose) for instance in map(drawn, range(60)))


def wrong(instance: Instance, choice: Chooser) -> bool:
    """Whether a chooser errs, or fails, for some budget."""
    try:
        return any(mistake(instance, share, choice) for share in (0.0, 0.3, 0.6))
    except KeyError:
        return True


@settings(max_examples=60, deadline=None)
@given(instances)
def test_more_room_is_never_slower(instance: Instance) -> None:
    if not all_choices(instance):
        return
    least = bytes_of(instance, fewest_bytes(instance))
    times = [choose(instance, least + more).seconds for more in (0, 5, 20, 200)]
    assert times == sorted(times, reverse=True)
    assert times[-1] == min(times)


CHAIN = tuple(Step((n,), (n + 1,), 1.0) for n in range(3))


def test_copies_beside_other_work_cost_what_is_over() -> None:
    """Four seconds of copies, two each way, beside one second out and three back."""
    away = (None, None, None, Away(4, 4.0))
    windows = (Window(0, 4, 1.0), Window(0, 4, 3.0))
    chain = Instance((0, 1, 1, 2), CHAIN, (3,), away, 4, windows)
    assert choose(chain, 0).seconds == 1.0
    assert choose(chain, 0).away == (3,)
    assert choose(chain, 2).kept == (3,)


def test_a_chain_costs_what_leads_to_it() -> None:
    """The last of four values is wanted; each step costs a second, and keeping each a byte."""
    chain = Instance((0, 1, 1, 2), CHAIN, (3,))
    assert [choose(chain, budget).seconds for budget in (0, 1, 2)] == [3.0, 1.0, 0.0]
    assert choose(chain, 1).kept == (2,)


@pytest.mark.parametrize(
    ("seconds", "host", "away"),
    [(2.5, 4, (3,)), (3.5, 4, ()), (2.5, 3, ()), (0.5, 4, (3,))],
)
def test_a_value_waits_where_that_is_faster_and_fits(
    seconds: float, host: int, away: tuple[int, ...]
) -> None:
    """Without room on the device: three seconds of steps, or copies of four bytes."""
    chain = Instance((0, 1, 1, 2), CHAIN, (3,), (None, None, None, Away(4, seconds)), host)
    choice = choose(chain, 0)
    assert choice.away == away
    assert choice.seconds == min(3.0, seconds if away else 3.0)
    assert choose(chain, 2).kept == (3,)
