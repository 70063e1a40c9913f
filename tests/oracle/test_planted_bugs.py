"""No planted bug goes unnoticed, and without one there is nothing to notice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.oracle.planted_bugs import BUGS


def test_every_planted_bug_shows(tmp_path: Path, root: Path) -> None:
    path = tmp_path / "bugs.json"
    path.write_bytes(msgspec.json.encode(BUGS))
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
    assert [line[1] for line in lines if line[0] == "shown"] == [bug.name for bug in BUGS]
