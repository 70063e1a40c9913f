"""Specs that the documentation shows are checked, formatted and compiled."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fllmc.driver import compile_spec
from fllmc.frontend import load
from fllmc.frontend.format import format_source
from tests.house.tree import ROOT, short

BLOCK = re.compile(r"^```fllm\n(.*?)^```", re.MULTILINE | re.DOTALL)
PROSE = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
SPECS = [
    pytest.param(text, id=f"{short(page)}-{number}")
    for page in PROSE
    for number, text in enumerate(BLOCK.findall(page.read_text(encoding="utf-8")), 1)
]


def test_specs_are_shown() -> None:
    assert len(SPECS) >= 3


@pytest.mark.parametrize("text", SPECS)
def test_a_shown_spec_holds(text: str, tmp_path: Path) -> None:
    """A block that begins with `fllm 1` is a whole file, and compiles if it has a run."""
    assert text.startswith("fllm 1\n")
    assert format_source(text) == text
    file = tmp_path / "shown.fllm"
    file.write_text(text)
    _, found, _ = load(str(file), needs_run=False)
    assert [each.message() for each in found if each.severity == "error"] == []
    if "\ntrain " in text:
        compile_spec(str(file))
