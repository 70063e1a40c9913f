"""What the prose tells people to type and to open exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT, short

PROSE = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"(?:^|`|\$ |/)fllmc ([a-z][a-z-]*)", re.MULTILINE)
TARGET = re.compile(r"(?:^|`|\$ )make ([a-z][a-z-]*)", re.MULTILINE)
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")
CODE = re.compile(r"`[^`\n]*`")
PLACE = re.compile(r"`((?:src|tests|docs|bench|specs|[a-z]+)/[\w./-]+)`")
TOPS = {p.name for p in ROOT.iterdir() if p.is_dir()}


def commands(text: str) -> set[str]:
    """The subcommands of fllmc that the text shows."""
    return set(COMMAND.findall(text))


def places(text: str) -> set[str]:
    """The files and folders that the text names in backticks; `passes/NAME.py` stands for any."""
    named = PLACE.findall(FENCE.sub("", text))
    return {p for p in named if p.split("/")[0] in TOPS and "NAME" not in p}


def test_there_is_prose() -> None:
    assert {"README.md", "CONTRIBUTING.md"} <= {short(p) for p in PROSE}


def test_commands_exist() -> None:
    shown = {word for p in PROSE for word in commands(p.read_text(encoding="utf-8"))}
    assert sorted(word for word in shown if not _answers(word)) == []


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    shown = {word for p in PROSE for word in TARGET.findall(p.read_text(encoding="utf-8"))}
    assert sorted(word for word in shown if f"\n{word}:" not in makefile) == []


@pytest.mark.parametrize("path", PROSE, ids=short)
def test_links_and_places_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    broken = [
        link
        for link in LINK.findall(CODE.sub("", FENCE.sub("", text)))
        if not (path.parent / link).exists()
    ]
    missing = [place for place in places(text) if not (ROOT / place).exists()]
    assert sorted(broken + missing) == []


def test_what_counts_as_shown() -> None:
    assert commands("run `fllmc check x` or\n$ fllmc run\n.venv/bin/fllmc fmt -") == {
        "check",
        "run",
        "fmt",
    }
    assert places("see `ir/types.py`, `ir/NAME.py`, `a/b`, `f16`") == {"ir/types.py"}


def _answers(word: str) -> bool:
    command = [sys.executable, "-m", "fllmc", word, "--help"]
    return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
