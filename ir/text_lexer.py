"""Cutting the text form into tokens that know their place."""

from __future__ import annotations

import re
from bisect import bisect_right
from typing import NamedTuple

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.errors import UnreadableText
from fllmc.ir.span import Span
from fllmc.ir.text_words import NAME

_TOKEN = re.compile(
    rf"""(?P<space>\s+|//[^\n]*)
    |(?P<name>{NAME})
    |(?P<number>-?[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?|-inf\b)
    |(?P<string>"(?:[^"\\\n]|\\.)*")
    |(?P<value>%[0-9]+)
    |(?P<mark>![0-9]+)
    |(?P<sign>->|[\[\](){{}}:,=@+^\#])""",
    re.VERBOSE,
)


class Token(NamedTuple):
    """A piece of the text: its kind (`end` behind the last), its characters, and where it is."""

    kind: str
    text: str
    start: int

    def shown(self) -> str:
        """The token in a message."""
        if self.kind == "end":
            return "the end of the text"
        return f"`{self.text if len(self.text) <= 40 else self.text[:40] + '…'}`"


class Source:
    """The text with its line starts, to tell places."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.lines = [0, *(match.end() for match in re.finditer("\n", text))]

    def span(self, start: int, end: int) -> Span:
        """The stretch between two characters."""
        (line, column), (end_line, end_column) = self._place(start), self._place(end)
        return Span(self.file, start, end, line, column, end_line, end_column)

    def _place(self, at: int) -> tuple[int, int]:
        line = bisect_right(self.lines, at)
        return line, at - self.lines[line - 1] + 1

    def tokens(self) -> list[Token]:
        """All tokens and an `end`; DiagnosticError at a character that begins none."""
        found: list[Token] = []
        at = 0
        while at < len(self.text):
            match = _TOKEN.match(self.text, at)
            if match is None:
                shown = ascii(self.text[at])[1:-1]
                raise DiagnosticError(
                    UnreadableText(self.span(at, at + 1), "a word or a sign", f"`{shown}`")
                )
            if match.lastgroup is not None and match.lastgroup != "space":
                found.append(Token(match.lastgroup, match.group(), at))
            at = match.end()
        return [*found, Token("end", "", len(self.text))]
