"""The verifier refuses every timetable that has been tampered with."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from fllmc.ir.timetable import Action, Timetable
from fllmc.passes.schedule.costs import uniform
from fllmc.passes.schedule.families import FAMILIES
from fllmc.passes.schedule.simulate import simulate
from fllmc.passes.schedule.verify import crossings, faults

Rows: TypeAlias = list[list[Action]]
PLAIN = FAMILIES["1f1b"](4, 8, 1)
SPLIT = FAMILIES["zb_h1"](4, 8, 1)
CHUNKED = FAMILIES["interleaved"](4, 8, 2)


def changed(table: Timetable, change: Callable[[Rows], None]) -> Timetable:
    """The timetable with its rows changed."""
    rows = [list(row) for row in table.rows]
    change(rows)
    return structs.replace(table, rows=tuple(map(tuple, rows)))


def at(kind: str, stage: int, micro: int) -> Action:
    """An action."""
    return Action(kind, stage, micro)  # pyright: ignore[reportArgumentType]


def swap(row: list[Action], first: Action, second: Action) -> None:
    """Two actions change places."""
    i, j = row.index(first), row.index(second)
    row[i], row[j] = row[j], row[i]


def lost(kind: str, stage: int, micro: int) -> Callable[[Rows], None]:
    """An action is dropped."""
    return lambda rows: rows[stage].remove(at(kind, stage, micro))


def put(rank: int, position: int, action: Action) -> Callable[[Rows], None]:
    """An action is added."""
    return lambda rows: rows[rank].insert(position, action)


def moved(action: Action, to: int) -> Callable[[Rows], None]:
    """An action is done by another rank."""

    def change(rows: Rows) -> None:
        for row in rows:
            if action in row:
                row.remove(action)
        rows[to].append(action)

    return change


MUTANTS: dict[str, tuple[Timetable, Callable[[Rows], None], str]] = {
    "a forward is lost": (PLAIN, lost("F", 2, 3), "missing"),
    "a backward is lost": (PLAIN, lost("B", 1, 7), "missing"),
    "the last micro-batch's weight gradient is lost": (SPLIT, lost("W", 3, 7), "missing"),
    "the first micro-batch's weight gradient is lost": (SPLIT, lost("W", 0, 0), "missing"),
    "an input gradient is lost": (SPLIT, lost("I", 2, 0), "missing"),
    "a chunk's backward is lost": (
        CHUNKED,
        lambda rows: rows[1].remove(at("B", 5, 4)),
        "missing",
    ),
    "a weight gradient is added twice": (SPLIT, put(1, 30, at("W", 1, 2)), "twice"),
    "a forward is done twice": (PLAIN, put(0, 0, at("F", 0, 0)), "twice"),
    "a backward is whole and in parts": (SPLIT, put(2, 40, at("B", 2, 5)), "twice"),
    "a rank does another's stage": (PLAIN, moved(at("F", 1, 2), 2), "misplaced"),
    "a chunk is on the wrong rank": (CHUNKED, moved(at("B", 6, 1), 3), "misplaced"),
    "a micro-batch too many": (PLAIN, put(3, 16, at("F", 3, 8)), "unknown"),
    "a stage too many": (PLAIN, put(3, 16, at("F", 4, 0)), "unknown"),
    "a backward before its forward": (
        PLAIN,
        lambda rows: swap(rows[3], at("F", 3, 4), at("B", 3, 4)),
        "unordered",
    ),
    "a weight gradient before its input gradient": (
        SPLIT,
        lambda rows: swap(rows[1], at("W", 1, 3), at("I", 1, 3)),
        "unordered",
    ),
    "one rank takes micro-batches in another order": (
        PLAIN,
        lambda rows: swap(rows[2], at("F", 2, 0), at("F", 2, 1)),
        "crossed",
    ),
    "cotangents are taken in another order": (
        PLAIN,
        lambda rows: swap(rows[0], at("B", 0, 2), at("B", 0, 3)),
        "crossed",
    ),
    "two ranks wait for each other": (
        PLAIN,
        lambda rows: rows[0].insert(1, rows[0].pop(rows[0].index(at("B", 0, 0)))),
        "deadlock",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_refused(name: str) -> None:
    table, change, kind = MUTANTS[name]
    assert faults(table) == ()
    found = faults(changed(table, change))
    assert kind in {fault.kind for fault in found}, found


def test_memory_over_the_limit_is_told_with_the_excess() -> None:
    costs = uniform(4)
    assert faults(PLAIN, costs=costs, limit=4.0) == ()
    (fault,) = faults(PLAIN, costs=costs, limit=3.5)
    assert (fault.kind, fault.rank) == ("memory", 0)
    assert "over 3.5 by 0.5" in fault.text


def test_stages_below_the_lowest_trainable_one_need_no_backward() -> None:
    rows = tuple(
        tuple(action for action in row if action.kind == "F" or action.stage >= 2)
        for row in PLAIN.rows
    )
    table = structs.replace(PLAIN, rows=rows)
    assert faults(table, trained=(2, 3)) == ()
    assert faults(table) != ()
    assert faults(PLAIN, trained=(2, 3)) != ()


@given(st.data())
def test_any_exchange_of_two_actions_is_refused_or_harmless(data: st.DataObject) -> None:
    """What the verifier lets pass comes to its end, in an order in which all sends are taken."""
    table = data.draw(st.sampled_from([PLAIN, SPLIT, CHUNKED]))
    rank = data.draw(st.integers(0, table.ranks - 1))
    places = st.integers(0, len(table.rows[rank]) - 1)
    i, j = data.draw(places), data.draw(places)

    def change(rows: Rows) -> None:
        rows[rank][i], rows[rank][j] = rows[rank][j], rows[rank][i]

    made = changed(table, change)
    if not faults(made):
        assert not list(crossings(made))
        assert simulate(made, uniform(table.stages)).stuck == ()
