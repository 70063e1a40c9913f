"""Bad text gives diagnostics with places, in time; the formatter keeps the tokens of any layout."""

from __future__ import annotations

from pathlib import Path
from random import Random
from time import process_time

import pytest

from fllmc.frontend.format import format_source, tokens
from fllmc.frontend.loading import load
from fllmc.frontend.parser import Parser
from fllmc.ir.render import render
from tests.frontend.mutating import SPECS, mangled, mutations

SECONDS = 2.0
"""No spec takes longer, in time of the processor: a hang is found, a busy machine is not one."""


def fault(path: Path, text: str) -> str:
    """What is wrong with how a text is taken, or nothing."""
    begin = process_time()
    try:
        spec, found, sources = load(str(path), text=text, needs_run=False)
        shown = render(found, sources)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    if process_time() - begin > SECONDS:
        return f"took {process_time() - begin:.1f} s"
    if any(not each.span.file or each.span.line < 1 for each in found):
        return f"a diagnostic without a place: {shown}"
    if spec is not None and any(each.severity == "error" for each in found):
        return "a spec in spite of errors"
    return ""


@pytest.mark.parametrize(
    ("count", "seed"),
    [
        (120, 1),
        *(pytest.param(10_000, seed, marks=pytest.mark.long, id=f"{seed}") for seed in range(10)),
    ],
)
def test_mutated_specs_give_diagnostics(count: int, seed: int, tmp_path: Path) -> None:
    for number, (path, text) in enumerate(mutations(count, seed)):
        wrong = fault(path, text)
        if wrong:
            (tmp_path / path.name).write_text(text, encoding="utf-8")
        assert not wrong, f"number {number} of {path.name}, in {tmp_path}"


@pytest.mark.parametrize("count", [1, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_any_layout_is_formatted_the_same_tokens(path: Path, count: int) -> None:
    text = path.read_text(encoding="utf-8")
    chance = Random(path.stem)
    assert format_source(text) == text
    for _ in range(count):
        variant = mangled(text, chance)
        formatted = format_source(variant)
        assert tokens(formatted) == tokens(variant) == tokens(text)
        assert format_source(formatted) == formatted
        assert comments(formatted) == comments(variant)


def comments(text: str) -> str:
    """All comments; those that come to stand on one line are one comment."""
    parser = Parser(text, "", lambda rule, parts, span: None)
    parser.run()
    return "  ".join(comment.text.rstrip() for comment in parser.comments)


def test_a_slip_in_a_size_makes_no_billions_of_names() -> None:
    text = next(path for path in SPECS if path.stem == "llama3_8b").read_text(encoding="utf-8")
    assert "  layers = 32\n" in text
    spec, found, _ = load("a.fllm", text=text.replace("layers = 32\n", "layers = 32T\n"))
    assert spec is None and [each.code for each in found] == ["E0227"]
