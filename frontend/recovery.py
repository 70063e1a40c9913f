"""What the parser does at a syntax error: say what is wrong, then find a place to go on.

It goes on at the next item of the body it is in, judged by indentation, or at the next section.
Nothing here is consulted while a text follows the grammar.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from fllmc.frontend import tables
from fllmc.frontend.lexer import Token
from fllmc.frontend.machine import CLOSERS, Machine
from fllmc.frontend.syntax_errors import Unclosed, UnexpectedToken, UnknownKeyword, Unmatched
from fllmc.ir.diagnostics import Diagnostic, near

PLACES = {
    "section": "a section",
    "block_item": "an item of a block",
    "rule_item": "an item of a rule",
    "schedule_item": "a line of a schedule",
    "train_item": "a line of a run",
    "field": "a field",
    "adapter_item": "a line of an adapter",
    "checkpoint_item": "a line of a checkpoint",
    "config_item": "a line of a configuration",
}
LATER = ("over", "in", "keep", "elsewhere")
SECTIONS = frozenset({"BLOCK", "MODEL", "DATA", "TRAIN"})
HEADER = re.compile(
    r'import\s*"|dims\s*\{|(?:block|model|loss|data|train|mesh|optimizer|rate|schedule|adapter|target|require)'
    r"[ \t]+[A-Za-z_]"
)
ITEM = re.compile(r"[A-Za-z_]\w*\s*(?:[=:A-Za-z_(*{#]|$)|[A-Za-z_]\w*\s+[\[\"]")
STARTS_VALUE = frozenset({"NAME", "NUMBER", "STRING"})
WITHIN_VALUE = frozenset({"TRUE", "FALSE", "LPAR", "LSQB", "MINUS", "STAR", "ONE_F_ONE_B"})
CONTINUES_VALUE = frozenset(
    {"PLUS", "MINUS", "STAR", "SLASH", "PERCENT", "CARET", "DOT", "LPAR", "LBRACE"}
)


def diagnosis(machine: Machine, token: Token) -> Diagnostic:
    """What is wrong where `token` can't stand."""
    if machine.body is not None:
        machine.item.clear()
    return (
        _unclosed(machine, token)
        or _unmatched(machine, token)
        or _unknown_keyword(machine, token)
        or _unexpected(machine, token)
    )


def resynchronise(machine: Machine, token: Token) -> None:
    """Goes on at a later line: an item of the body, its end, or the next section."""
    lexer = machine.lexer
    between = machine.body is not None
    first = token if between or not machine.item else machine.item[0]
    again = _strayed(machine, token) or (_leads(machine, token) and first is not token)
    indent = _indent(lexer.line(first.span.line))
    depth, items = machine.innermost_body()
    line = token.span.line if again else token.span.line + 1
    while line <= len(lexer.starts):
        text = lexer.line(line)
        if HEADER.match(text):
            break
        here = text.lstrip()
        if items != "section" and _indent(text) <= indent and (here[:1] == "}" or ITEM.match(here)):
            machine.drop(depth)
            return lexer.seek(line)
        line += 1
    machine.drop_section()
    return lexer.seek(line)


def _strayed(machine: Machine, token: Token) -> bool:
    """Whether `token` is in the head of a section that begins inside another one."""
    if machine.section is None or machine.body == "section":
        return False
    start = machine.lexer.starts[token.span.line - 1]
    line = machine.lexer.line(token.span.line)
    return HEADER.match(line) is not None and machine.section.span.start < start


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _leads(machine: Machine, token: Token) -> bool:
    """Whether `token` is the first on its line."""
    span = token.span
    return not machine.lexer.text[machine.lexer.starts[span.line - 1] : span.start].strip()


def _unclosed(machine: Machine, token: Token) -> Diagnostic | None:
    openers = machine.openers()
    if not openers:
        return None
    opener, line = openers[-1], machine.lexer.line(openers[-1].span.line)
    ended = token.kind == tables.END
    outer = [CLOSERS[o.text] for o in openers[:-1]]
    crossed = token.text in outer and CLOSERS[opener.text] != token.text
    outdented = (
        opener.text != "{"
        and opener.span.line < token.span.line
        and _leads(machine, token)
        and token.span.column - 1 <= _indent(line)
        and token.text != CLOSERS[opener.text]
    )
    if not (ended or crossed or outdented or _strayed(machine, token)):
        return None
    latest = token.span
    if _strayed(machine, token) and not ended:
        start = machine.lexer.starts[token.span.line - 1]
        latest = machine.lexer.span(start, start + len(machine.lexer.line(latest.line).split()[0]))
    return Unclosed(opener.span, opener.text, CLOSERS[opener.text], latest, ended)


def _unmatched(machine: Machine, token: Token) -> Diagnostic | None:
    open_now = {CLOSERS[o.text] for o in machine.openers()}
    if token.text in CLOSERS.values() and token.text not in open_now:
        return Unmatched(token.span, token.text)
    return None


def _unknown_keyword(machine: Machine, token: Token) -> Diagnostic | None:
    """For an item that begins with a name where a keyword is meant."""
    depth, item = machine.innermost_body()
    words = {kind: word for word, kind in machine.table.keywords.items()}
    keywords = tuple(
        sorted(words[kind] for kind in machine.table.states[machine.states[depth]] if kind in words)
    )
    word = token if not machine.item else machine.item[0]
    if not keywords or word.kind != "NAME" or len(machine.item) > 1:
        return None
    guess = _guess(word, keywords) or _guess(word, LATER)
    at_top = item == "section"
    if not at_top and (guess is None or not machine.item or token.text in ("=", ":")):
        return None
    return UnknownKeyword(word.span, word.text[:40], PLACES[item], guess, keywords)


def _guess(token: Token, keywords: Sequence[str]) -> str | None:
    word = token.text.lower()
    return word if word in keywords else near(word, keywords)


def _unexpected(machine: Machine, token: Token) -> Diagnostic:
    kinds = machine.expected()
    words = {kind: word for word, kind in machine.table.keywords.items()}
    guess = None
    if token.kind == "NAME" and "NAME" not in kinds:
        guess = _guess(token, [words[kind] for kind in kinds if kind in words])
    openers = machine.openers()
    opener = openers[-1].span if openers and openers[-1].text != "{" else None
    near_by = opener is None or opener.line == token.span.line
    return UnexpectedToken(
        token.span, _listed(machine, kinds), _shown(token), guess, None if near_by else opener
    )


def _listed(machine: Machine, kinds: set[str]) -> str:
    """`kinds` in words, leaving out the many ways to make a value longer."""
    named: list[str] = []
    if kinds >= SECTIONS:
        return "a section"
    if kinds >= STARTS_VALUE:
        named.append("a value")
        kinds = kinds - STARTS_VALUE - WITHIN_VALUE
    elif kinds & CONTINUES_VALUE and kinds - CONTINUES_VALUE - {"LSQB"}:
        kinds = kinds - CONTINUES_VALUE - {"LSQB"}
    texts = {kind: f"`{text}`" for text, kind in machine.table.signs.items()}
    texts |= {kind: f"`{text}`" for text, kind in machine.table.keywords.items()}
    texts |= {"NAME": "a name", "NUMBER": "a number", "STRING": "a string"}
    texts |= {"INDEX": "a layer number", tables.END: "the end of the file"}
    order = [*machine.table.keywords.values(), "NAME", "NUMBER", "STRING", "INDEX"]
    rank = {kind: place for place, kind in enumerate(order)}
    named += [texts[kind] for kind in sorted(kinds, key=lambda k: (rank.get(k, 99), texts[k]))]
    return named[0] if len(named) == 1 else ", ".join(named[:-1]) + " or " + named[-1]


def _shown(token: Token) -> str:
    if token.kind == tables.END:
        return "the end of the file"
    text = token.text if len(token.text) <= 40 else token.text[:39] + "…"
    return text if token.kind == "STRING" else f"`{text}`"
