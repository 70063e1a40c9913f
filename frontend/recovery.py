"""What the parser does at a syntax error: say what is wrong, then find a place to go on.

It goes on at the next item of the body it is in, judged by indentation, or at the next section.
Nothing here is consulted while a text follows the grammar.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fllmc.frontend import tables
from fllmc.frontend.lexer import Token
from fllmc.frontend.syntax_errors import UnexpectedToken, UnknownKeyword, Unclosed, Unmatched
from fllmc.ir.diagnostics import Diagnostic, near

if TYPE_CHECKING:
    from fllmc.frontend.parser import Parser

BODIES = {
    "sections": "section",
    "dim_items": "dim_item",
    "block_items": "block_item",
    "rule_items": "rule_item",
    "schedule_items": "schedule_item",
    "adapter_items": "adapter_item",
    "fields": "field",
}
PLACES = {
    "section": "a section",
    "block_item": "an item of a block",
    "rule_item": "an item of a rule",
    "schedule_item": "a line of a schedule",
    "adapter_item": "a line of an adapter",
}
LATER = ("over", "in", "keep")
SECTIONS = frozenset({"BLOCK", "MODEL", "DATA", "TRAIN"})
CLOSERS = {"(": ")", "[": "]", "{": "}"}
HEADER = re.compile(
    r'import\s*"|dims\s*\{|(?:block|model|data|train|mesh|optimizer|rate|schedule|adapter)'
    r"[ \t]+[A-Za-z_]"
)
ITEM = re.compile(r"[A-Za-z_]\w*\s*(?:[=:A-Za-z_(*{#]|$)|[A-Za-z_]\w*\s+[\[\"]")
STARTS_VALUE = frozenset({"NAME", "NUMBER", "STRING"})
CONTINUES_VALUE = frozenset({"PLUS", "MINUS", "STAR", "SLASH", "CARET", "DOT", "LPAR", "LBRACE"})


def recover(parser: Parser, token: Token, quiet: bool) -> None:
    """Reports that `token` can't stand here, unless `quiet`, and moves the parser on."""
    if body_of(parser) is not None:
        parser.item.clear()
    if not quiet:
        parser.found.append(_diagnose(parser, token))
    resynchronise(parser, token)


def resynchronise(parser: Parser, token: Token) -> None:
    """Goes on at a later line: an item of the body, its end, or the next section."""
    lexer = parser.lexer
    first = parser.item[0] if parser.item else token
    line = token.span.line
    again = strayed(parser, token) or (_leads(parser, token) and first is not token)
    indent = _indent(lexer.line(first.span.line))
    at_top = _body_depth(parser)[1] == "section"
    for number in range(line if again else line + 1, len(lexer.starts) + 1):
        text = lexer.line(number)
        if HEADER.match(text):
            drop_to_file(parser)
            return lexer.seek(number)
        here = text.lstrip()
        if not at_top and _indent(text) <= indent and (here[:1] == "}" or ITEM.match(here)):
            drop(parser, _body_depth(parser)[0])
            return lexer.seek(number)
    drop_to_file(parser)
    lexer.seek(len(lexer.starts) + 1)


def drop_to_file(parser: Parser) -> None:
    """Forgets the section being read."""
    for depth, state in enumerate(parser.states):
        names = parser.table.states[state]
        if "section" in names:
            return drop(parser, depth)
    depth = 2 if len(parser.states) > 2 and "sections" in _row(parser, 2) else 0
    drop(parser, depth)


def forced(row: dict[str, int]) -> int | None:
    """The reduction that a state makes whatever follows, so that an error shows at its place."""
    actions = {action for symbol, action in row.items() if not symbol.islower()}
    return actions.pop() if len(actions) == 1 and min(actions) < 0 else None


def body_of(parser: Parser) -> str | None:
    """What items the body holds that the parser stands in, between two of its items."""
    return _body_at(parser, len(parser.states) - 1)


def strayed(parser: Parser, token: Token) -> bool:
    """Whether `token` is in the head of a section that begins inside another one."""
    if parser.section is None or _body_depth(parser)[1] == "section" and body_of(parser):
        return False
    start = parser.lexer.starts[token.span.line - 1]
    line = parser.lexer.line(token.span.line)
    return HEADER.match(line) is not None and parser.section.span.start < start


def _body_at(parser: Parser, depth: int) -> str | None:
    row = _row(parser, depth)
    for items, item in BODIES.items():
        if items in row or item in row:
            return item
    return None


def _body_depth(parser: Parser) -> tuple[int, str]:
    """The innermost body: how deep in the stack, and what items it holds."""
    for depth in range(len(parser.states) - 1, 0, -1):
        item = _body_at(parser, depth)
        if item is not None:
            return depth, item
    return 0, "section"


def _row(parser: Parser, depth: int) -> dict[str, int]:
    return parser.table.states[parser.states[depth]]


def drop(parser: Parser, depth: int) -> None:
    """Forgets all but the first `depth` values."""
    del parser.states[depth + 1 :], parser.values[depth:]
    del parser.spans[depth:], parser.depths[depth:]


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _leads(parser: Parser, token: Token) -> bool:
    """Whether `token` is the first on its line."""
    span = token.span
    return not parser.lexer.text[parser.lexer.starts[span.line - 1] : span.start].strip()


def _diagnose(parser: Parser, token: Token) -> Diagnostic:
    return (
        _unclosed(parser, token)
        or _unmatched(parser, token)
        or _unknown_keyword(parser, token)
        or _unexpected(parser, token)
    )


def _openers(parser: Parser) -> list[Token]:
    """The brackets open here, outermost first."""
    found: list[Token] = []
    for value in parser.values:
        if isinstance(value, Token) and value.text in CLOSERS:
            found.append(value)
        elif isinstance(value, Token) and value.text in CLOSERS.values():
            found.pop()
    return found


def _unclosed(parser: Parser, token: Token) -> Diagnostic | None:
    openers = _openers(parser)
    if not openers:
        return None
    opener, line = openers[-1], parser.lexer.line(openers[-1].span.line)
    ended = token.kind == tables.END
    outer = [CLOSERS[o.text] for o in openers[:-1]]
    crossed = token.text in outer and CLOSERS[opener.text] != token.text
    outdented = (
        opener.text != "{"
        and opener.span.line < token.span.line
        and _leads(parser, token)
        and token.span.column - 1 <= _indent(line)
        and token.text != CLOSERS[opener.text]
    )
    if not (ended or crossed or outdented or strayed(parser, token)):
        return None
    latest = token.span
    if strayed(parser, token) and not ended:
        start = parser.lexer.starts[token.span.line - 1]
        latest = parser.lexer.span(start, start + len(parser.lexer.line(latest.line).split()[0]))
    return Unclosed(opener.span, opener.text, CLOSERS[opener.text], latest, ended)


def _unmatched(parser: Parser, token: Token) -> Diagnostic | None:
    open_now = {CLOSERS[o.text] for o in _openers(parser)}
    if token.text in CLOSERS.values() and token.text not in open_now:
        return Unmatched(token.span, token.text)
    return None


def _unknown_keyword(parser: Parser, token: Token) -> Diagnostic | None:
    """For an item that begins with a name where a keyword is meant."""
    depth, item = _body_depth(parser)
    words = {kind: word for word, kind in parser.table.keywords.items()}
    keywords = tuple(sorted(words[kind] for kind in _row(parser, depth) if kind in words))
    word = token if not parser.item else parser.item[0]
    if not keywords or word.kind != "NAME" or len(parser.item) > 1:
        return None
    guess = near(word.text.lower(), keywords) or near(word.text.lower(), LATER)
    at_top = item == "section"
    if not at_top and (guess is None or not parser.item or token.text in ("=", ":")):
        return None
    return UnknownKeyword(word.span, word.text[:40], PLACES[item], guess, keywords)


def _unexpected(parser: Parser, token: Token) -> Diagnostic:
    kinds = _expected(parser)
    words = {kind: word for word, kind in parser.table.keywords.items()}
    guess = None
    if token.kind == "NAME" and "NAME" not in kinds:
        guess = near(token.text.lower(), [words[kind] for kind in kinds if kind in words])
    openers = _openers(parser)
    opener = openers[-1].span if openers and openers[-1].text != "{" else None
    near_by = opener is None or opener.line == token.span.line
    return UnexpectedToken(
        token.span, _listed(parser, kinds), _shown(token), guess, None if near_by else opener
    )


def _expected(parser: Parser) -> set[str]:
    """The kinds of token that could stand here."""
    row = _row(parser, len(parser.states) - 1)
    return {kind for kind in row if not kind.islower() and _takes(parser, kind)}


def _takes(parser: Parser, kind: str) -> bool:
    """Whether `kind` leads on to a shift, tried on a copy of the states."""
    states = list(parser.states)
    while True:
        action = parser.table.states[states[-1]].get(kind)
        if action is None:
            return False
        if action >= 0 or states[-1] == parser.table.end:
            return True
        rule = parser.table.rules[-action - 1]
        del states[len(states) - rule.size :]
        states.append(parser.table.states[states[-1]][rule.origin])
        if states[-1] == parser.table.end:
            return True


def _listed(parser: Parser, kinds: set[str]) -> str:
    """`kinds` in words, leaving out the many ways to make a value longer."""
    named: list[str] = []
    if kinds >= SECTIONS:
        return "a section"
    if kinds >= STARTS_VALUE:
        named.append("a value")
        kinds = kinds - STARTS_VALUE - {"TRUE", "FALSE", "LPAR", "LSQB", "MINUS", "STAR"}
    elif kinds & CONTINUES_VALUE and kinds - CONTINUES_VALUE - {"LSQB"}:
        kinds = kinds - CONTINUES_VALUE - {"LSQB"}
    texts = {kind: f"`{text}`" for text, kind in parser.table.signs.items()}
    texts |= {kind: f"`{text}`" for text, kind in parser.table.keywords.items()}
    texts |= {"NAME": "a name", "NUMBER": "a number", "STRING": "a string"}
    texts |= {"INDEX": "a layer number", tables.END: "the end of the file"}
    order = [*parser.table.keywords.values(), "NAME", "NUMBER", "STRING", "INDEX"]
    rank = {kind: place for place, kind in enumerate(order)}
    named += [texts[kind] for kind in sorted(kinds, key=lambda k: (rank.get(k, 99), texts[k]))]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " or " + named[-1]


def _shown(token: Token) -> str:
    if token.kind == tables.END:
        return "the end of the file"
    text = token.text if len(token.text) <= 40 else token.text[:39] + "…"
    return text if token.kind == "STRING" else f"`{text}`"
