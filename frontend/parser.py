"""Text to syntax tree, with every syntax error of the file in one go.

`parse(text, file)` never raises and takes time linear in the text. When it reports errors, the
tree holds the sections that could be read; don't check it further.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fllmc.frontend import ast, recovery, tables
from fllmc.frontend.build import Builder
from fllmc.frontend.lexer import BAD, OPEN_STRING, Lexer, Token
from fllmc.frontend.syntax_errors import (
    BadCharacter,
    MissingHeader,
    TooDeep,
    UnterminatedString,
)
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

MAX_DEPTH = 150
"""How deep a tree may be, counted in rules; keeps recursion over trees safe."""
MAX_STACK = 4 * MAX_DEPTH
MAX_ERRORS = 100
LISTS = frozenset({"append", "more", "one", "empty", "absent", "path_more"})


def parse(text: str, file: str) -> tuple[ast.File, tuple[Diagnostic, ...]]:
    """The tree of `text`, and its syntax errors in order of place."""
    builder = Builder()
    parser = Parser(text, file, builder)
    tree: ast.File = parser.run()
    found = [*parser.found, *builder.found]
    if tree.version is None:
        tree = ast.File(tree.span if tree.sections else parser.whole(), None, tree.sections)
        if not any(d.span.start <= parser.first.span.start for d in found):
            found.append(MissingHeader(parser.first.span))
    return tree, tuple(sorted(found, key=lambda d: (d.span.start, d.span.end, d.code)))


class Parser:
    """A table-driven LALR(1) parser; `reduce` makes the value of a rule from those of its parts.

    After `run`, `tokens` and `comments` hold what was read, `found` what was wrong.
    """

    def __init__(self, text: str, file: str, reduce: Callable[[str, list[Any], Span], Any]) -> None:
        self.lexer = Lexer(text, file)
        self.reduce = reduce
        self.table = tables.load()
        self.states = [0]
        self.values: list[Any] = []
        self.spans: list[Span] = []
        self.depths: list[int] = []
        self.found: list[Diagnostic] = []
        self.tokens: list[Token] = []
        self.item: list[Token] = []
        """The tokens read so far of the innermost item."""
        self.section: Token | None = None

    @property
    def comments(self) -> list[Token]:
        return self.lexer.comments

    @property
    def first(self) -> Token:
        """The first token of the file, or its end."""
        return self.tokens[0] if self.tokens else self._end()

    def whole(self) -> Span:
        """The place of the whole text."""
        return self.lexer.span(0, len(self.lexer.text))

    def run(self) -> Any:
        """Reads to the end; the value of the file."""
        after_bad = False
        while True:
            token = self.lexer.next(self.table.states[self.states[-1]])
            self.tokens.append(token)
            if token.kind == BAD:
                self.found.append(BadCharacter(token.span, token.text[:40]))
                after_bad = True
                continue
            if token.kind == OPEN_STRING:
                self.found.append(UnterminatedString(token.span))
                token = Token("STRING", '""', token.span)
            if len(self.found) >= MAX_ERRORS:
                return self._give_up()
            if not self.feed(token):
                # What a dropped character leaves behind needs no second report.
                recovery.recover(self, token, quiet=after_bad)
            elif self.states[-1] == self.table.end:
                return self.values[-1]
            after_bad = False

    def feed(self, token: Token) -> bool:
        """Takes `token`, or returns False when the grammar has no place for it here."""
        while True:
            row = self.table.states[self.states[-1]]
            action = row.get(token.kind)
            if action is None:
                action = recovery.forced(row)
            if action is None:
                return False
            if action >= 0:
                return self._shift(token, action)
            if not self._reduce(self.table.rules[-action - 1], token):
                return True
            if self.states[-1] == self.table.end:
                return True

    def _shift(self, token: Token, state: int) -> bool:
        body = recovery.body_of(self)
        if body is not None:
            self.item.clear()
            if body == "section":
                self.section = token
        self.item.append(token)
        self.states.append(state)
        self.values.append(token)
        self.spans.append(token.span)
        self.depths.append(0)
        if len(self.values) > MAX_STACK:
            self._too_deep(token.span)
        return True

    def _reduce(self, rule: tables.Rule, token: Token) -> bool:
        """False when the tree would get too deep, which is then reported and recovered from."""
        first = len(self.values) - rule.size
        parts, depth = self.values[first:], max(self.depths[first:], default=0)
        span = self._over(first, token)
        recovery.drop(self, first)
        if rule.lean and rule.size == 1 and rule.name == rule.origin:
            self.values.append(parts[0])
        else:
            depth += rule.name not in LISTS
            self.values.append(self.reduce(rule.name, parts, span))
        self.spans.append(span)
        self.depths.append(depth)
        self.states.append(self.table.states[self.states[-1]][rule.origin])
        if depth > MAX_DEPTH:
            self._too_deep(token.span)
            return False
        return True

    def _over(self, first: int, token: Token) -> Span:
        """The place of the values from `first` on; where there are none, just before `token`."""
        spans = [span for span in self.spans[first:] if span.start < span.end]
        return spans[0].to(spans[-1]) if spans else token.span.opening()

    def _too_deep(self, span: Span) -> None:
        self.found.append(TooDeep(span, MAX_DEPTH))
        recovery.resynchronise(self, self.tokens[-1])

    def _give_up(self) -> Any:
        recovery.drop_to_file(self)
        self.feed(self._end())
        return self.values[-1]

    def _end(self) -> Token:
        size = len(self.lexer.text)
        return Token(tables.END, "", self.lexer.span(size, size))
