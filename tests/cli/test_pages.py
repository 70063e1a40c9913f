"""Every code has a page with four things that hold: what it means, a wrong input and what is said
of it, the input put right, and related codes.

`pytest tests/cli/test_pages.py --update` writes the heads, the texts that are printed and
docs/errors.md anew; read the difference.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fllmc.cli.catalogue import PAGES, every_code
from fllmc.frontend.format import format_source
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.render import render
from tests.cli.page_samples import SAMPLES
from tests.cli.pages import CODE, SECTIONS, carried_out, head_of, page, path_of, rewrite
from tests.cli.running import run
from tests.house.tree import ROOT

KINDS = list(every_code().values())
SAMPLED = {sample.code: sample for sample in SAMPLES}
INDEX = ROOT / "docs" / "errors.md"
INTRODUCTION = """# Diagnostics

Each code with what it means and a link to its page, which `fllmc explain CODE` prints.
This list is written by `pytest tests/cli/test_pages.py --update`.

| code | |
| --- | --- |
"""


def slow(kind: type[Diagnostic]) -> bool:
    """Whether the page's commands compile."""
    return "fllmc compile" in page(kind.code).sections.get("Wrong", "")


def each(kinds: list[type[Diagnostic]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("kind", kinds, ids=lambda kind: kind.code)


def shown(kinds: list[type[Diagnostic]]) -> list[type[Diagnostic]]:
    """Those whose page shows a command that a test can run."""
    return [kind for kind in kinds if kind.code not in SAMPLED]


QUICK = [kind for kind in shown(KINDS) if not slow(kind)]
SLOW = [kind for kind in shown(KINDS) if slow(kind)]


@each(KINDS)
def test_a_page_has_all_its_parts(kind: type[Diagnostic], request: pytest.FixtureRequest) -> None:
    assert path_of(kind.code).is_file(), f"write src/fllmc/cli/pages/{kind.code}.md"
    found = page(kind.code)
    if request.config.getoption("--update"):
        rewrite(kind, found.told())
        found = page(kind.code)
    assert found.head == head_of(kind)
    assert tuple(found.sections) == SECTIONS
    assert len(found.sections["Why"].strip()) > 30
    assert found.command("Wrong") and found.sections["Right"].strip()
    related = CODE.findall(found.sections["See also"])
    assert related and set(related) <= set(every_code()) - {kind.code}


def test_every_page_is_of_a_code() -> None:
    assert {path.stem for path in PAGES.iterdir()} == set(every_code())


def holds(
    kind: type[Diagnostic], folder: Path, monkeypatch: pytest.MonkeyPatch, update: bool
) -> None:
    """The wrong example gives this code alone and the golden text, the right one no code."""
    found = page(kind.code)
    heard = carried_out(found, "Wrong", folder, monkeypatch)
    if update:
        rewrite(kind, heard.told)
        found = page(kind.code)
    assert {each.code for each in heard.found} == {kind.code}, heard.told
    assert heard.told == found.told()
    heard = carried_out(found, "Right", folder, monkeypatch)
    assert (heard.told, heard.status) == ("", 0)
    for section in ("Wrong", "Right"):
        assert _canonical(found.source(section)[1])


def _canonical(text: str) -> bool:
    """Whether a spec is as `fllmc fmt` writes it; what it can't read is left alone."""
    try:
        return not text.startswith("fllm") or format_source(text) == text
    except DiagnosticError:
        return True


@each(QUICK)
def test_examples_hold(
    kind: type[Diagnostic],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    holds(kind, tmp_path, monkeypatch, bool(request.config.getoption("--update")))


@pytest.mark.long
@each(SLOW)
def test_examples_that_are_compiled_hold(
    kind: type[Diagnostic],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    holds(kind, tmp_path, monkeypatch, bool(request.config.getoption("--update")))


@pytest.mark.parametrize("code", SAMPLED)
def test_texts_of_samples_hold(code: str, request: pytest.FixtureRequest) -> None:
    said = render([SAMPLED[code]], {})
    if request.config.getoption("--update"):
        rewrite(type(SAMPLED[code]), said)
    assert page(code).told() == said


def test_explain_prints_the_page() -> None:
    for code in ("E0204", "W0201"):
        assert run("explain", code.lower()).stdout == path_of(code).read_text(encoding="utf-8")


def test_the_list_in_the_docs_is_complete(request: pytest.FixtureRequest) -> None:
    rows = [
        f"| [{kind.code}](../src/fllmc/cli/pages/{kind.code}.md) | {_first(kind)} |\n"
        for kind in KINDS
    ]
    text = INTRODUCTION + "".join(rows)
    if request.config.getoption("--update"):
        INDEX.write_text(text, encoding="utf-8")
    assert INDEX.read_text(encoding="utf-8") == text


def _first(kind: type[Diagnostic]) -> str:
    """The first paragraph of what a code means, in a line."""
    return head_of(kind).split("\n\n")[1].replace("\n", " ").replace("|", "\\|")
