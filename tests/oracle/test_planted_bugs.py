"""No planted bug goes unnoticed, and without one there is nothing to notice."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

from tests.house.tree import ROOT
from tests.oracle.planted_bugs import BUGS, Bug

EVERY = 8
"""One bug in so many is judged in the short run."""


def test_planted_bugs_show(tmp_path: Path, root: Path) -> None:
    judge(BUGS[::EVERY], tmp_path, root)


@pytest.mark.long
def test_every_planted_bug_shows(tmp_path: Path, root: Path) -> None:
    judge(BUGS, tmp_path, root)


def test_what_is_planted_stands_in_the_source_once() -> None:
    for bug in BUGS:
        text = (ROOT / (bug.module.replace(".", "/") + ".py")).read_text(encoding="utf-8")
        assert text.count(bug.old) == 1, bug.name


def judge(bugs: Sequence[Bug], tmp_path: Path, root: Path) -> None:
    """Each of the bugs shows, and nothing does without them."""
    path = tmp_path / "bugs.json"
    path.write_bytes(msgspec.json.encode(bugs))
    done = subprocess.run(
        [sys.executable, "-m", "tests.oracle.judge_of_bugs", str(path)],
        capture_output=True,
        text=True,
        cwd=root,
        check=True,
    )
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert [line for line in lines if line[0] in ("missed", "broken")] == []
    assert [line for line in lines if line[0] == "clean" and line[2]] == []
    assert [line[1] for line in lines if line[0] == "shown"] == [bug.name for bug in bugs]
