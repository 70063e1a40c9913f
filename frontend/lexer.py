"""Text to tokens, one at a time, as the parser's state allows.

The lexer is contextual: a word is a keyword only where the parser could take that keyword, so
`data` may be a mesh axis and `over` an argument. Text that is no token becomes a token of kind
`BAD` or `OPEN_STRING`, for the parser to report; every text can be lexed to its end.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Mapping
from functools import cache

from msgspec import Struct

from fllmc.frontend import tables
from fllmc.ir.span import Span

BAD = "BAD"
OPEN_STRING = "OPEN_STRING"


class Token(Struct, frozen=True):
    """One word, sign, number or string; `kind` is a terminal of the grammar."""

    kind: str
    text: str
    span: Span


@cache
def _master() -> re.Pattern[str]:
    patterns = tables.load().patterns
    signs = sorted(tables.load().signs, key=lambda sign: (-len(sign), sign))
    parts = {
        "SPACE": patterns["SPACE"],
        "COMMENT": patterns["COMMENT"],
        "NAME": patterns["NAME"],
        # A letter that touches a number belongs to it: `8k` is one number, and `8q` one bad one.
        "NUMBER": f"(?:{patterns['NUMBER']})[A-Za-z0-9_]*",
        "STRING": patterns["STRING"],
        OPEN_STRING: r'"[^\n]*',
        "SIGN": "|".join(re.escape(sign) for sign in signs),
        BAD: r"[^\s\w\"#()\[\]{},:=.+\-*/^]+|[^\W\d]\w*|.",
    }
    return re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in parts.items()), re.S)


class Lexer:
    """Reads `text` from `position` on; `comments` gathers the comments passed on the way."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.position = 0
        self.comments: list[Token] = []
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]
        self._master = _master()
        self._digits = re.compile(tables.load().patterns["INDEX"])
        self._keywords = tables.load().keywords
        self._signs = tables.load().signs

    def next(self, accepts: Mapping[str, int], takes: Callable[[str], bool]) -> Token:
        """The next token, where the parser's state has actions for the kinds in `accepts`.

        `takes` says whether the parser gets as far as to shift a kind: the actions of a state are
        merged from all places that it serves, so some lead nowhere here.
        """
        while True:
            match = self._master.match(self.text, self.position)
            if match is None:
                return Token(tables.END, "", self.span(len(self.text), len(self.text)))
            kind, text = match.lastgroup or BAD, match.group()
            if kind == "NUMBER" and "INDEX" in accepts and "NUMBER" not in accepts:
                digits = self._digits.match(self.text, self.position)
                kind, text = "INDEX", digits.group() if digits else text
            start, self.position = self.position, self.position + len(text)
            if kind == "SPACE":
                continue
            kind = self._kind(kind, text, accepts, takes)
            token = Token(kind, text, self.span(start, self.position))
            if kind != "COMMENT":
                return token
            self.comments.append(token)

    def _kind(
        self, kind: str, text: str, accepts: Mapping[str, int], takes: Callable[[str], bool]
    ) -> str:
        if kind == "SIGN":
            return self._signs[text]
        keyword = self._keywords.get(text) if kind in ("NAME", "NUMBER") else None
        if keyword == "TOKENS" and self._is_key():
            return kind
        if keyword and keyword in accepts and (takes(keyword) or not takes(kind)):
            return keyword
        return kind

    def _is_key(self) -> bool:
        """Whether a colon comes next."""
        return self.text[self.position :].lstrip()[:1] == ":"

    def span(self, start: int, end: int) -> Span:
        """The place of the characters `start` to `end`."""
        line = bisect_right(self.starts, start)
        last = bisect_right(self.starts, end)
        column = start - self.starts[line - 1] + 1
        return Span(self.file, start, end, line, column, last, end - self.starts[last - 1] + 1)

    def line(self, number: int) -> str:
        """Line `number` (from 1) without its line end."""
        end = self.starts[number] if number < len(self.starts) else len(self.text)
        return self.text[self.starts[number - 1] : end].rstrip("\r\n")

    def seek(self, line: int) -> None:
        """Goes on at the start of `line`, or at the end of the text if there's no such line."""
        self.position = self.starts[line - 1] if line <= len(self.starts) else len(self.text)
