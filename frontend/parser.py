"""Text to syntax tree, with every syntax error of the file in one go.

`parse(text, file)` never raises and takes time linear in the text. When it reports errors, the
tree holds the sections that could be read; don't check it further.
"""

from __future__ import annotations

from typing import Any

from fllmc.frontend import ast, recovery, tables
from fllmc.frontend.build import Builder
from fllmc.frontend.lexer import BAD, OPEN_STRING, Lexer, Token
from fllmc.frontend.machine import MAX_DEPTH, Machine, Reduce
from fllmc.frontend.syntax_errors import BadCharacter, MissingHeader, TooDeep, UnterminatedString
from fllmc.ir.diagnostics import Diagnostic

MAX_ERRORS = 100
"""After this many the parser gives up, so that hostile text takes little time."""


def parse(text: str, file: str) -> tuple[ast.File, tuple[Diagnostic, ...]]:
    """The tree of `text`, and its syntax errors in order of place."""
    builder = Builder()
    parser = Parser(text, file, builder)
    tree: ast.File = parser.run()
    found = [*parser.found, *builder.found]
    first = parser.tokens[0].span
    if tree.version is None and not any(d.span.start <= first.start for d in found):
        found.append(MissingHeader(first))
    return tree, tuple(sorted(found, key=lambda d: (d.span.start, d.span.end, d.code)))


class Parser:
    """Reads one text; after `run`, holds the tokens, the comments and the syntax errors."""

    def __init__(self, text: str, file: str, reduce: Reduce) -> None:
        self.lexer = Lexer(text, file)
        self.machine = Machine(self.lexer, reduce)
        self.tokens: list[Token] = []
        self.found: list[Diagnostic] = []

    @property
    def comments(self) -> list[Token]:
        """The comments, in order."""
        return self.lexer.comments

    def run(self) -> Any:
        """Reads to the end; the value of the file."""
        quiet = False
        while not self.machine.ended:
            token = self.machine.next()
            self.tokens.append(token)
            bad = self._bad(token)
            if len(self.found) >= MAX_ERRORS:
                self._give_up()
            elif token.kind != BAD:
                self._feed(token, quiet)
            # What a bad character or an open string leaves behind needs no second report.
            quiet = bad
        return self.machine.values[-1]

    def _bad(self, token: Token) -> bool:
        if token.kind == BAD:
            self.found.append(BadCharacter(token.span, token.text[:40]))
        elif token.kind == OPEN_STRING:
            self.found.append(UnterminatedString(token.span))
        return token.kind in (BAD, OPEN_STRING)

    def _feed(self, token: Token, quiet: bool) -> None:
        if token.kind == OPEN_STRING:
            token = Token("STRING", '""', token.span)
        outcome = self.machine.feed(token)
        if outcome == "taken":
            return
        if outcome == "deep":
            self.found.append(TooDeep(token.span, MAX_DEPTH))
        elif not quiet:
            self.found.append(recovery.diagnosis(self.machine, token))
        recovery.resynchronise(self.machine, token)

    def _give_up(self) -> None:
        size = len(self.lexer.text)
        self.machine.drop_section()
        self.machine.feed(Token(tables.END, "", self.lexer.span(size, size)))
