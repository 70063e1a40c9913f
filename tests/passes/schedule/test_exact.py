"""The exact search against all orders of small problems, and against published figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product

import pytest

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.settings import Pipeline
from fllmc.ir.timetable import Action, Kind
from fllmc.passes.schedule import choose
from fllmc.passes.schedule.choose import chosen
from fllmc.passes.schedule.costs import Costs, uniform
from fllmc.passes.schedule.exact import exact
from fllmc.passes.schedule.families import FAMILIES, finished
from fllmc.passes.schedule.greedy import automatic
from fllmc.passes.schedule.simulate import Simulation, simulate
from fllmc.passes.schedule.verify import faults
from tests.passes.schedule.test_published import SMALL, costs_of

ROUNDING = 1e-3
"""Times are rounded down to 1 / 50,000 of a micro-batch's work, so bounds are a little low."""

UNEVEN = Costs((1.0, 2.3), (1.1, 2.0), (0.9, 0.4), (1.0, 1.5), (0.5, 1.0), 0.25)
SLOW_LINK = Costs((1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (1.0, 1.0), (0.5, 0.5), 1.7)
FROZEN = Costs((1.0, 2.0), (1.3, 1.0), (0.0, 0.0), (1.0, 1.0), (0.5, 0.5), 0.25)


def orders(stage: int, micros: int, kinds: tuple[Kind, ...]) -> Iterator[tuple[Action, ...]]:
    """Every order of a stage's actions in which each kind takes the micro-batches in turn."""

    def further(row: tuple[Action, ...], done: dict[Kind, int]) -> Iterator[tuple[Action, ...]]:
        if len(row) == len(kinds) * micros:
            yield row
        for at, kind in enumerate(kinds):
            before = done[kinds[at - 1]] if at else micros
            if done[kind] < before:
                action = Action(kind, stage, done[kind])
                yield from further((*row, action), {**done, kind: done[kind] + 1})

    yield from further((), dict.fromkeys(kinds, 0))


def best_of_all(costs: Costs, micros: int, limit: float) -> float:
    """The least bubble of any order of two stages on two ranks within the memory."""
    kinds: tuple[Kind, ...] = ("F", "I", "W") if any(costs.weight) else ("F", "B")
    rows = product(*(orders(stage, micros, kinds) for stage in (0, 1)))
    found = (simulate(finished("any", (0, 1), micros, list(map(list, r))), costs) for r in rows)
    return min(f.bubble for f in found if not f.stuck and max(f.peaks) <= limit + 1e-9)


@pytest.mark.parametrize("limit", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("costs", [UNEVEN, SLOW_LINK, FROZEN], ids=["uneven", "link", "frozen"])
def test_it_is_the_best_of_all_orders(costs: Costs, limit: float) -> None:
    start = simulate(finished("one by one", (0, 1), 3, one_by_one(3)), costs)
    found = exact(start, costs, [limit, limit])
    assert faults(found.timetable, costs=costs, limit=limit) == ()
    assert found.bubble == pytest.approx(best_of_all(costs, 3, limit), abs=1e-9)
    assert found.bubble - ROUNDING <= found.bound <= found.bubble


def one_by_one(micros: int) -> list[list[Action]]:
    """Two stages that finish each micro-batch before the next."""
    return [
        [Action(kind, stage, micro) for micro in range(micros) for kind in ("F", "B")]
        for stage in (0, 1)
    ]


def test_several_stages_of_a_rank_share_its_time_and_memory() -> None:
    costs = Costs((1, 2, 1, 1), (1, 2, 1, 1), (1, 1, 1, 1), (1.0,) * 4, (0.5,) * 4, 0.1)
    start = simulate(FAMILIES["zb_v"](2, 4, 2), costs)
    found = exact(start, costs, [4.0, 4.0])
    assert faults(found.timetable, costs=costs, limit=4.0) == ()
    assert found.bound <= found.bubble < start.bubble


def test_without_effort_the_start_stays_and_nothing_is_proven() -> None:
    costs = uniform(4, transfer=0.1)
    start = automatic((0, 1, 2, 3), 8, costs, [4.0] * 4, 0)
    assert start is not None
    found = exact(start, costs, [4.0] * 4, effort=0.0)
    assert found.timetable == start.timetable
    assert found.bound <= found.bubble


def test_the_same_input_gives_the_same_order() -> None:
    def once() -> Simulation:
        return chosen(Pipeline("auto", memory=1.25, exact=True), 3, 6, uniform(3, transfer=0.1))

    first, second = once(), once()
    assert first.timetable == second.timetable
    assert first.bound == second.bound
    plain = chosen(Pipeline("auto", memory=1.25), 3, 6, uniform(3, transfer=0.1))
    assert first.bubble <= plain.bubble


def test_without_the_solver_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "installed", lambda: False)
    with pytest.raises(DiagnosticError) as caught:
        chosen(Pipeline("auto", exact=True), 2, 4, uniform(2))
    (found,) = caught.value.diagnostics
    assert found.code == "E0841"
    assert found.helps() == ("`pip install 'fllmc[solver]'` installs it",)


def test_the_solver_is_loaded_only_to_search() -> None:
    probe = "import sys, fllmc.passes.schedule.exact; assert 'ortools' not in sys.modules"
    subprocess.run([sys.executable, "-c", probe], check=True)


def published(memory: float) -> Simulation:
    """The first model of Table 5 with 24 micro-batches, within so many p M_B."""
    costs, limits = costs_of(SMALL[0]), [8 * memory] * 8
    start = automatic(tuple(range(8)), 24, costs, limits)
    assert start is not None
    found = exact(start, costs, limits)
    assert faults(found.timetable, costs=costs, limit=limits[0]) == ()
    return found


@pytest.mark.long
@pytest.mark.parametrize(("memory", "bubble"), [(1.0, 0.1585), (1.25, 0.0951), (1.5, 0.0524)])
def test_the_published_problem_is_solved_with_proof(memory: float, bubble: float) -> None:
    """No order of work within 1 p M_B is better than 15.85 %, 1.25 than 9.51 %, 1.5 than 5.24 %."""
    found = published(memory)
    assert round(found.bubble, 4) <= bubble
    assert found.bubble - found.bound <= 1e-4
