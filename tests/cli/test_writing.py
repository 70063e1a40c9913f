"""`check`, `fmt` and `explain`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fllmc.cli.catalogue import every_code
from fllmc.ir.diagnostics import explanation
from tests.cli.running import document, run

CROOKED = "fllm 1\ndims {embed=4 }  # a comment\n"
STRAIGHT = "fllm 1\n\ndims {\n  embed = 4\n}  # a comment\n"
WRONG = "fllm 1\n\ndims {\n  embed = 4\n  embed = 5\n}\n"


def test_check_takes_the_name_of_a_spec_that_ships() -> None:
    done = run("check", "quickstart")
    assert (done.exit_code, done.stdout) == (0, "")
    assert done.stderr == "quickstart: no errors\n"


def test_check_shows_the_place_and_the_way_out() -> None:
    done = run("check", "quickstart", "--set", "dims.layrs=2")
    assert done.exit_code == 1
    assert "dims.layrs=2" in done.stderr
    assert "help: did you mean `dims.layers`?" in done.stderr


def test_check_of_a_missing_file_is_a_diagnostic() -> None:
    done = run("check", "quickstrat")
    assert done.exit_code == 1
    assert done.stderr.startswith("error[E0113]")


def test_check_gives_diagnostics_as_data(tmp_path: Path) -> None:
    spec = tmp_path / "wrong.fllm"
    spec.write_text(WRONG)
    done = run("check", str(spec), "--json")
    found = json.loads(done.stdout)
    assert done.exit_code == 1
    assert found["schema"] == "fllmc.check/1"
    assert found["specs"][0]["diagnostics"][0]["span"]["line"] == 5
    lines = run("check", str(spec), "--format", "json").stderr.splitlines()
    assert json.loads(lines[0]) == found["specs"][0]["diagnostics"][0]


def test_fmt_writes_the_canonical_form(tmp_path: Path) -> None:
    spec = tmp_path / "a.fllm"
    spec.write_text(CROOKED)
    assert run("fmt", "--check", str(spec)).exit_code == 1
    difference = run("fmt", "--diff", str(spec))
    assert (difference.exit_code, "+  embed = 4" in difference.stdout) == (0, True)
    assert spec.read_text() == CROOKED
    assert run("fmt", str(spec)).exit_code == 0
    assert spec.read_text() == run("fmt", "-", given=CROOKED).stdout
    assert run("fmt", "--check", str(spec)).exit_code == 0


def test_fmt_leaves_a_file_with_errors_alone(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.fllm", tmp_path / "bad.fllm"
    good.write_text(CROOKED)
    bad.write_text("fllm 1\ndims {")
    done = run("fmt", str(bad), str(good))
    assert done.exit_code == 1
    assert "error[E01" in done.stderr
    assert bad.read_text() == "fllm 1\ndims {"
    assert good.read_text() != CROOKED


@pytest.mark.parametrize("code", sorted(every_code()))
def test_every_code_has_a_page(code: str) -> None:
    page = explanation(every_code()[code])
    done = run("explain", code.lower())
    assert done.exit_code == 0
    assert page and page in done.stdout


def test_explain_lists_all_codes() -> None:
    assert sorted(document("explain", "--json")["codes"]) == sorted(every_code())
    assert len(run("explain").stdout.splitlines()) == len(every_code())


def test_explain_of_no_code_names_the_nearest() -> None:
    done = run("explain", "E02001")
    assert done.exit_code == 1
    assert "did you mean" in done.stderr
