"""The known schedules: bubbles and memory as published, and nothing wrong with any of them."""

from __future__ import annotations

import pytest

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.settings import Pipeline
from fllmc.passes.schedule.choose import chosen, placements
from fllmc.passes.schedule.costs import Costs, uniform
from fllmc.passes.schedule.families import FAMILIES
from fllmc.passes.schedule.simulate import Simulation, simulate
from fllmc.passes.schedule.verify import faults

GRID = [(1, 1), (1, 3), (2, 2), (2, 7), (3, 6), (4, 4), (4, 8), (5, 3), (8, 16)]
CHUNKS = {"gpipe": (1, 2), "interleaved": (1, 2, 3), "breadth_first": (1, 2, 4), "zb_v": (2,)}


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_schedule_of_every_size_is_sound(kind: str) -> None:
    for ranks, micros in GRID:
        for chunks in CHUNKS.get(kind, (1,)):
            if kind == "interleaved" and micros % ranks:
                continue
            assert faults(FAMILIES[kind](ranks, micros, chunks)) == ()


def run(kind: str, ranks: int, micros: int, chunks: int, **times: float) -> Simulation:
    """A schedule with the same times on all stages; a rank's forward takes `forward` in all."""
    given = {"forward": 1.0, "input": 1.0, "weight": 1.0, **times}
    split = {name: time / chunks for name, time in given.items()}
    costs = uniform(ranks * chunks, **split)
    return simulate(FAMILIES[kind](ranks, micros, chunks), costs)


@pytest.mark.parametrize(("ranks", "micros"), [(2, 4), (4, 8), (8, 16), (8, 64)])
def test_bubbles_are_those_of_theory(ranks: int, micros: int) -> None:
    times = {"forward": 2.0, "input": 2.5, "weight": 1.5}
    whole = micros * 6.0
    for kind, chunks in (("gpipe", 1), ("1f1b", 1), ("interleaved", 2), ("interleaved", 4)):
        found = run(kind, ranks, micros, chunks, **times)
        wanted = (ranks - 1) / (chunks * micros)
        assert found.makespan / whole - 1 == pytest.approx(wanted, abs=1e-12), kind
    found = run("zb_h1", ranks, micros, 1, **times)
    assert found.makespan - whole == pytest.approx((ranks - 1) * (2.0 + 2.5 - 1.5), abs=1e-9)


@pytest.mark.parametrize(("ranks", "micros"), [(2, 4), (4, 8), (8, 16), (8, 40)])
def test_zb_v_has_no_bubble_where_all_takes_the_same_time(ranks: int, micros: int) -> None:
    assert run("zb_v", ranks, micros, 2).bubble == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("ranks", [2, 4, 8])
def test_memory_is_as_published(ranks: int) -> None:
    micros = 4 * ranks
    for kind in ("1f1b", "zb_h1"):
        assert max(run(kind, ranks, micros, 1).peaks) == ranks
    assert max(run("zb_v", ranks, micros, 2).peaks) / 2 == ranks
    assert max(run("gpipe", ranks, micros, 1).peaks) == micros
    for chunks in (2, 4):
        wanted = ranks * (1 + (ranks - 1) / (ranks * chunks))
        assert max(run("interleaved", ranks, micros, chunks).peaks) / chunks == wanted


def test_frozen_weights_gain_nothing_from_zero_bubble() -> None:
    costs = uniform(4, weight=0.0, late=0.0)
    found = chosen(Pipeline("auto"), 4, 12, costs).timetable
    assert {action.kind for row in found.rows for action in row} == {"F", "B"}
    assert found.name == "1f1b"


@pytest.mark.parametrize("memory", [0.25, 0.3, 0.5, 0.75])
def test_frozen_weights_keep_within_less_memory_than_1f1b(memory: float) -> None:
    costs = uniform(4, weight=0.0)
    found = chosen(Pipeline("auto", memory=memory), 4, 8, costs)
    assert faults(found.timetable, costs=costs, limit=memory * 4) == ()
    assert {action.kind for row in found.timetable.rows for action in row} == {"F", "B"}


def test_automatic_uses_the_memory_that_it_is_given() -> None:
    costs = uniform(4, transfer=0.05)
    bubbles: list[float] = []
    for memory in (0.5, 1.0, 1.5, 2.0):
        found = chosen(Pipeline("auto", memory=memory), 4, 12, costs)
        assert max(found.peaks) <= memory * 4
        assert faults(found.timetable, costs=costs, limit=memory * 4) == ()
        bubbles.append(found.bubble)
    assert bubbles == sorted(bubbles, reverse=True)
    assert bubbles[-1] < bubbles[0] / 2


def test_a_bound_is_kept_by_every_schedule() -> None:
    for kind, chunks, memory in (("1f1b", 1, 1.0), ("zb_v", 2, 1.0), ("interleaved", 2, 1.375)):
        found = chosen(Pipeline(kind, chunks, memory), 4, 8, uniform(4 * chunks))
        assert max(found.peaks) / chunks == memory * 4


@pytest.mark.parametrize("weight", [0.0, 0.3], ids=["frozen", "trained"])
def test_automatic_is_never_worse_than_the_published_orders_on_the_same_stages(
    weight: float,
) -> None:
    order = Pipeline("auto", 2, memory=1.5)
    for homes in placements(order, 3):
        chunks = len(homes) // 3
        costs = uniform(len(homes), weight=weight, transfer=0.02)
        found = chosen(order, 3, 6, costs, homes)
        assert faults(found.timetable, costs=costs, limit=1.5 * 3 * chunks) == ()
        if not weight:
            assert {a.kind for row in found.timetable.rows for a in row} == {"F", "B"}
        for kind in ("1f1b", "interleaved", "zb_v"):
            table = FAMILIES[kind](3, 6, chunks)
            if table.homes == homes:
                known = simulate(table, costs)
                fits = max(known.peaks) <= 1.5 * 3 * chunks
                assert not fits or found.bubble <= known.bubble + 1e-9, kind


def test_placements_go_round_the_ranks_or_there_and_back() -> None:
    found = placements(Pipeline("auto", 2), 3)
    assert found == ((0, 1, 2), (0, 1, 2, 0, 1, 2), (0, 1, 2, 2, 1, 0))
    assert placements(Pipeline("zb_v", 2), 2) == ((0, 1, 1, 0),)


def test_automatic_suits_uneven_stages() -> None:
    costs = Costs((1, 2, 1, 3), (1, 2, 1, 3), (1, 1, 1, 2), (1.0,) * 4, (0.5,) * 4, 0.1)
    plain = simulate(FAMILIES["1f1b"](4, 8, 1), costs)
    found = chosen(Pipeline("auto"), 4, 8, costs)
    assert found.makespan < plain.makespan
    assert faults(found.timetable, costs=costs, limit=4.0) == ()


@pytest.mark.parametrize(
    ("pipeline", "micros", "code", "help"),
    [
        (Pipeline("interleaved", 2), 6, "E0521", "set `microbatches: 8` in the schedule"),
        (Pipeline("1f1b", 2), 8, "E0522", "`interleaved` and `breadth_first` take any number"),
        (Pipeline("zb_v", 3), 8, "E0522", "`interleaved` and `breadth_first` take any number"),
        (Pipeline("auto", memory=0.2), 8, "E0421", "`memory: 0.25` is the least that works"),
        (Pipeline("zb_h1", memory=0.9), 8, "E0422", "`auto(memory: 0.9)` looks for an order"),
        (Pipeline("gpipe", memory=1.5), 8, "E0422", "`auto(memory: 1.5)` looks for an order"),
        (Pipeline("1f1b", exact=True), 8, "E0524", "`auto` looks for the best order"),
        (Pipeline("zigzag"), 8, "E0523", "known are `gpipe`, `1f1b`"),
    ],
)
def test_what_does_not_go(pipeline: Pipeline, micros: int, code: str, help: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        chosen(pipeline, 4, micros, uniform(4 * pipeline.chunks))
    (found,) = caught.value.diagnostics
    assert found.code == code
    assert found.helps()[0].startswith(help)
