"""The LALR(1) tables of `fllm.lark`, as data.

Lark compiles the grammar, which takes a third of a second, and importing Lark alone takes a
tenth; neither is needed to parse. The tables are therefore kept in `tables.json` beside the
grammar. `python -m fllmc.frontend.tables` writes them anew; a test compares them with a fresh
build.
"""

from __future__ import annotations

from collections import deque
from functools import cache
from pathlib import Path
from typing import Any, cast

import msgspec
from msgspec import Struct

GRAMMAR = Path(__file__).with_name("fllm.lark")
TABLES = Path(__file__).with_name("tables.json")
END = "$END"


class Rule(Struct, frozen=True, array_like=True):
    """What a reduction does: replaces `size` values by one `origin`, built by `name`.

    A `lean` rule with one child hands that child on as it is.
    """

    origin: str
    name: str
    size: int
    lean: bool


class Tables(Struct, frozen=True):
    """The parser and the lexer as data; state 0 is the start.

    `states[s][symbol]`, when 0 or more, is the next state (a shift, or the goto of a rule's
    origin); when a negative n, it is a reduction by rule `-n - 1`. `end` is the state reached
    after the whole file.
    """

    end: int
    keywords: dict[str, str]
    signs: dict[str, str]
    patterns: dict[str, str]
    rules: list[Rule]
    states: list[dict[str, int]]


@cache
def load() -> Tables:
    """The tables that ship with the package."""
    return msgspec.json.decode(TABLES.read_bytes(), type=Tables)


def build(grammar: str) -> Tables:
    """Compiles `grammar` with Lark in strict mode: any conflict or terminal collision raises."""
    from lark import Lark

    parser: Any = Lark(
        grammar, parser="lalr", strict=True, keep_all_tokens=True, maybe_placeholders=False
    )
    table = parser.parser.parser._parse_table
    numbers = _numbered(table)
    rules: dict[Rule, int] = {}
    states = [_state(table.states[state], numbers, rules) for state in numbers]
    keywords, signs, patterns = _terminals(parser.terminals)
    end = numbers[table.end_states["start"]]
    return Tables(end, keywords, signs, patterns, list(rules), states)


def encode(tables: Tables) -> str:
    """The text of `tables.json`, a rule or a state a line."""
    whole = msgspec.to_builtins(tables)
    parts: list[str] = []
    for key, value in whole.items():
        if isinstance(value, list):
            listed = cast("list[Any]", value)
            rows = ",\n".join(msgspec.json.encode(row).decode() for row in listed)
            parts.append(f'"{key}": [\n{rows}\n]')
        else:
            parts.append(f'"{key}": {msgspec.json.encode(value).decode()}')
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _numbered(table: Any) -> dict[int, int]:
    """Lark's states in breadth-first order, since Lark's own numbers depend on hashing."""
    start = table.start_states["start"]
    numbers = {start: 0}
    queue = deque([start])
    while queue:
        actions = table.states[queue.popleft()]
        for symbol in sorted(actions):
            action, target = actions[symbol]
            if action.name == "Shift" and target not in numbers:
                numbers[target] = len(numbers)
                queue.append(target)
    return numbers


def _state(actions: Any, numbers: dict[int, int], rules: dict[Rule, int]) -> dict[str, int]:
    row: dict[str, int] = {}
    for symbol in sorted(actions):
        action, target = actions[symbol]
        if action.name == "Shift":
            row[str(symbol)] = numbers[target]
        else:
            row[str(symbol)] = -rules.setdefault(_rule(target), len(rules)) - 1
    return row


def _rule(rule: Any) -> Rule:
    origin = str(rule.origin.name)
    return Rule(origin, str(rule.alias or origin), len(rule.expansion), bool(rule.options.expand1))


def _terminals(terminals: Any) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    keywords: dict[str, str] = {}
    signs: dict[str, str] = {}
    patterns: dict[str, str] = {}
    for terminal in sorted(terminals, key=lambda t: t.name):
        pattern, name = terminal.pattern, str(terminal.name)
        if pattern.type == "re":
            patterns[name] = str(pattern.value)
        else:
            (keywords if pattern.value.isalnum() else signs)[str(pattern.value)] = name
    return keywords, signs, patterns


if __name__ == "__main__":
    TABLES.write_text(encode(build(GRAMMAR.read_text("utf-8"))), "utf-8")
