"""The words of the language, in groups that editors colour alike, from the parser's own tables.

Keywords are contextual: `data` also names an axis. Those that begin a section or an item stand
first on their line; the others stand within one.
"""

from __future__ import annotations

from functools import cache

from msgspec import Struct

from fllmc.frontend import tables
from fllmc.frontend.machine import BODIES
from fllmc.frontend.semantics.forms import FORMS


class Words(Struct, frozen=True):
    """Groups of words and patterns. No word is in two of `sections`, `items`, `inner`, `truths`."""

    sections: tuple[str, ...]
    items: tuple[str, ...]
    inner: tuple[str, ...]
    truths: tuple[str, ...]
    functions: tuple[str, ...]
    signs: tuple[str, ...]
    comment: str
    string: str
    number: str
    name: str


@cache
def words() -> Words:
    """The words of this version."""
    table = tables.load()
    sections = _leading("sections") | {"fllm"}
    items = frozenset[str]().union(*(_leading(body) for body in BODIES)) - sections
    truths = {"true", "false"}
    inner = frozenset(table.keywords) - sections - items - truths
    return Words(
        tuple(sorted(sections)),
        tuple(sorted(items - truths)),
        tuple(sorted(inner)),
        tuple(sorted(truths)),
        tuple(sorted(FORMS)),
        tuple(sorted(table.signs, key=lambda sign: (-len(sign), sign))),
        table.patterns["COMMENT"],
        table.patterns["STRING"],
        table.patterns["NUMBER"],
        table.patterns["NAME"],
    )


def _leading(body: str) -> frozenset[str]:
    """The keywords that can begin an item of a body."""
    table = tables.load()
    item = BODIES[body]
    rows = [row for row in table.states if item in row]
    return frozenset(word for word, kind in table.keywords.items() if any(kind in r for r in rows))


def section_word(known: Words) -> str:
    """A regular expression for a word that begins a section, before a name, a text or a brace."""
    return rf"\b(?:{'|'.join(known.sections)})\b(?=[ \t]+(?!in\b)[\w\"]|[ \t]*\{{)"


def item_word(known: Words) -> str:
    """The same for a word that begins an item, which may speak of a selector or a value.

    Before a minus only `return` is no name.
    """
    return rf"\b(?:{'|'.join(known.items)})\b(?=[ \t]+[\w\"*\[(]|[ \t]*\{{)|\breturn\b"


def inner_word(known: Words) -> str:
    """The same for a word within an item, where no sign makes it a name."""
    return rf"\b(?:{'|'.join(known.inner)})\b(?![ \t]*[:=.,)\]}}]|\()"


def whole_word(choices: tuple[str, ...]) -> str:
    """The same for any of the words."""
    return rf"\b(?:{'|'.join(choices)})\b"
