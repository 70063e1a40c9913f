"""`fllmc pipeline`: figures, pictures, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest

from fllmc.cli import exits
from fllmc.passes.schedule import choose
from fllmc.passes.schedule.families import FAMILIES
from fllmc.passes.schedule.text import parse_timetable
from tests.cli.running import document, run


def test_figures_and_the_picture() -> None:
    done = run("pipeline", "1f1b", "--ranks", "4", "--micros", "8", "--times", "1,1,1")
    assert done.exit_code == 0, done.stderr
    assert "time        33, of which a rank works 24" in done.stdout
    assert "bubble      27.27%" in done.stdout
    assert "most kept   4 micro-batches" in done.stdout
    assert "  3  .  .  . F0 B0  - F1" in done.stdout


def test_an_exact_search_tells_its_bound() -> None:
    done = run("pipeline", "auto", "--ranks", "2", "--micros", "4", "--exact")
    assert done.exit_code == 0, done.stderr
    assert "bound       7.69%: no order that keeps no more is below it" in done.stdout
    assert "bubble      7.69%" in done.stdout


def test_without_the_solver_the_machine_lacks_something(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "installed", lambda: False)
    done = run("pipeline", "auto", "--ranks", "2", "--micros", "4", "--exact")
    assert done.exit_code == exits.ENVIRONMENT
    assert "pip install 'fllmc[solver]'" in done.stderr


def test_as_data_and_as_a_table() -> None:
    given = ("pipeline", "interleaved", "--ranks", "2", "--micros", "4", "--chunks", "2")
    told = document(*given, "--json")
    table = FAMILIES["interleaved"](2, 4, 2)
    assert told["rows"] == [[str(action) for action in row] for row in table.rows]
    assert parse_timetable(run(*given, "--table").stdout) == table


def test_a_drawing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.svg"
    done = run("pipeline", "zb_v", "--ranks", "2", "--micros", "4", "--svg", str(path))
    assert done.exit_code == 0, done.stderr
    assert path.read_text().startswith("<svg ")


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (("auto", "--memory", "0.1"), exits.INFEASIBLE, "`memory: 0.25` is the least that works"),
        (("interleaved",), exits.INFEASIBLE, "needs a multiple of 4 micro-batches, not 6"),
        (("zigzag",), exits.BAD_INPUT, "there is no pipeline schedule `zigzag`"),
        (("zb_v", "--chunks", "3"), exits.BAD_INPUT, "gives each rank two stages, not 3"),
        (("gpipe", "--memory", "1"), exits.INFEASIBLE, "keeps 1.5 of what 1F1B keeps: 0.5 over 1"),
        (("zb_h1", "--exact"), exits.BAD_INPUT, "there is nothing `exact` to find"),
        (("1f1b", "--times", "1,x,1"), exits.USAGE, "is not three times"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], status: int, words: str) -> None:
    done = run("pipeline", *arguments, "--ranks", "4", "--micros", "6")
    assert done.exit_code == status
    assert words in done.stderr
