"""Colours follow the token table: what the parser calls a keyword, a string or a number is one."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path

import pytest
from pygments import lex
from pygments.token import Comment, Error, Keyword, Number, String

from fllmc.editor.highlighting import FllmLexer
from fllmc.editor.textmate import encoded, grammar
from fllmc.editor.words import words
from fllmc.frontend import tables
from fllmc.frontend.parser import Parser
from tests.house.tree import ROOT

SPECS = sorted((ROOT / "specs").rglob("*.fllm"))


def wanted(text: str) -> dict[int, str]:
    """What the parser takes the words of a text for, by their places."""
    parser = Parser(text, "", lambda rule, parts, span: None)
    parser.run()
    keywords = set(tables.load().keywords.values())
    groups = {"STRING": "string", "COMMENT": "comment"}
    every = [*parser.tokens, *parser.comments]
    return {
        token.span.start: groups.get(token.kind, "keyword" if token.kind in keywords else "other")
        for token in every
        if token.text and token.kind not in ("NUMBER", "INDEX")
    }


def coloured(text: str) -> dict[int, str]:
    """The same of the lexer for Pygments."""
    kinds = {Keyword: "keyword", String: "string", Comment: "comment"}
    found: dict[int, str] = {}
    place = 0
    for kind, part in lex(text, FllmLexer(stripnl=False, ensurenl=False)):
        assert kind is not Error, part
        if part.strip():
            group = next((name for top, name in kinds.items() if kind in top), "other")
            found[place] = "number" if kind in Number else group
        place += len(part)
    assert place == len(text)
    return found


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_parser_and_the_colours_agree(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    seen = coloured(text)
    differ = {
        text[place : place + 30]: (kind, seen.get(place))
        for place, kind in wanted(text).items()
        if seen.get(place) != kind
    }
    assert differ == {}


def test_every_word_of_the_table_has_a_group() -> None:
    known = words()
    groups = (known.sections, known.items, known.inner, known.truths)
    every = [word for group in groups for word in group]
    assert sorted(every) == sorted(tables.load().keywords)
    assert {"block", "model", "dims"} <= set(known.sections)
    assert {"param", "stack", "return"} <= set(known.items)


def test_the_textmate_grammar_is_that_of_the_table() -> None:
    path = ROOT / "docs" / "editor" / "fllm.tmLanguage.json"
    again = f"python -m fllmc.editor.textmate {path.relative_to(ROOT)}"
    assert path.read_text(encoding="utf-8") == encoded(), again
    assert json.loads(encoded()) == grammar()
    for rule in grammar()["patterns"]:
        re.compile(rule["match"])
    text = encoded()
    assert all(re.search(rf"\b{word}\b", text) for word in tables.load().keywords)


def test_pygments_finds_the_lexer() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    entry = project["project"]["entry-points"]["pygments.lexers"]["fllm"]
    assert entry == f"{FllmLexer.__module__}:{FllmLexer.__name__}"
    assert "*.fllm" in FllmLexer.filenames
