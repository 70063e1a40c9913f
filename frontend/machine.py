"""A table-driven LALR(1) parser that can be asked where it stands.

It knows nothing of errors beyond that a token has no place; see `recovery.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from fllmc.frontend import tables
from fllmc.frontend.lexer import Lexer, Token
from fllmc.ir.span import Span

MAX_DEPTH = 100
"""How deep a tree may be, counted in rules; keeps recursion over trees safe."""
MAX_STACK = 4 * MAX_DEPTH
LISTS = frozenset(
    {"append", "more", "one", "empty", "absent", "single", "group", "clause", "path_start"}
    | {"path_more", "names", "inputs", "parameters", "exprs", "arguments", "pairs", "values"}
    | {"items", "selectors", "options", "path_index", "axes", "foreign", "foreign_same", "factors"}
)
"""Rules that make lists of nodes, not nodes, and so do not count for the depth."""
BODIES = {
    "sections": "section",
    "dim_items": "dim_item",
    "block_items": "block_item",
    "rule_items": "rule_item",
    "schedule_items": "schedule_item",
    "adapter_items": "adapter_item",
    "checkpoint_items": "checkpoint_item",
    "config_items": "config_item",
    "train_items": "train_item",
    "fields": "field",
}
"""The rules of lists of items that no comma parts, and those of their items."""
CLOSERS = {"(": ")", "[": "]", "{": "}"}

Outcome = Literal["taken", "refused", "deep"]
Reduce = Callable[[str, list[Any], Span], Any]
"""The value of a rule, by name, from the values of its parts and their place."""


class Machine:
    """The parser's stacks, and what of the text it has read."""

    def __init__(self, lexer: Lexer, reduce: Reduce) -> None:
        self.lexer = lexer
        self.reduce = reduce
        self.table = tables.load()
        self.states = [0]
        self.values: list[Any] = []
        self.spans: list[Span] = []
        self.depths: list[int] = []
        self.item: list[Token] = []
        """The tokens read so far of the innermost item."""
        self.section: Token | None = None
        """The first token of the section."""

    @property
    def row(self) -> dict[str, int]:
        """What can be done in the state on top."""
        return self.table.states[self.states[-1]]

    @property
    def ended(self) -> bool:
        """Whether the whole file has been read."""
        return self.states[-1] == self.table.end

    @property
    def body(self) -> str | None:
        """What items the body holds, when the parser stands between two items of one."""
        return _items_of(self.row)

    def next(self) -> Token:
        """The next token."""
        return self.lexer.next(self.row, self.takes)

    def feed(self, token: Token) -> Outcome:
        """Takes `token`, if the grammar has a place for it here and the tree stays shallow."""
        while True:
            row = self.table.states[self.states[-1]]
            action = row.get(token.kind)
            if action is None:
                action = _forced(row)
            if action is None:
                return "refused"
            if action >= 0:
                self._shift(token, action)
                return "deep" if len(self.values) > MAX_STACK else "taken"
            self._reduce(self.table.rules[-action - 1], token)
            if self.depths[-1] > MAX_DEPTH:
                return "deep"
            if self.ended:
                return "taken"

    def _shift(self, token: Token, state: int) -> None:
        body = self.body
        if body is not None:
            self.item.clear()
            if body == "section":
                self.section = token
        self.item.append(token)
        self.states.append(state)
        self.values.append(token)
        self.spans.append(token.span)
        self.depths.append(0)

    def _reduce(self, rule: tables.Rule, token: Token) -> None:
        first = len(self.values) - rule.size
        parts, depth = self.values[first:], max(self.depths[first:], default=0)
        span = self._over(first, token)
        self.drop(first)
        if rule.lean and rule.size == 1 and rule.name == rule.origin:
            self.values.append(parts[0])
        else:
            depth += rule.name not in LISTS
            self.values.append(self.reduce(rule.name, parts, span))
        self.spans.append(span)
        self.depths.append(depth)
        self.states.append(self.table.states[self.states[-1]][rule.origin])

    def _over(self, first: int, token: Token) -> Span:
        """The place of the values from `first` on; where there are none, just before `token`."""
        spans = [span for span in self.spans[first:] if span.start < span.end]
        return spans[0].to(spans[-1]) if spans else token.span.opening()

    def drop(self, depth: int) -> None:
        """Forgets all but the first `depth` values."""
        del self.states[depth + 1 :], self.values[depth:]
        del self.spans[depth:], self.depths[depth:]

    def innermost_body(self) -> tuple[int, str]:
        """The innermost open body: how many values stand before it or in it, and its items."""
        for depth in range(len(self.states) - 1, 0, -1):
            items = _items_of(self.table.states[self.states[depth]])
            if items is not None:
                return depth, items
        return 0, "section"

    def drop_section(self) -> None:
        """Forgets the section being read, if any."""
        while self.innermost_body()[1] != "section":
            self.drop(self.innermost_body()[0] - 1)
        self.drop(self.innermost_body()[0])

    def openers(self) -> list[Token]:
        """The brackets open here, outermost first."""
        found: list[Token] = []
        for value in self.values:
            if isinstance(value, Token) and value.text in CLOSERS:
                found.append(value)
            elif isinstance(value, Token) and value.text in CLOSERS.values():
                found.pop()
        return found

    def expected(self) -> set[str]:
        """The kinds of token that could stand here."""
        return {kind for kind in self.row if not kind.islower() and self.takes(kind)}

    def takes(self, kind: str) -> bool:
        """Whether `kind` leads on to a shift, tried on a copy of the states."""
        states = list(self.states)
        while True:
            action = self.table.states[states[-1]].get(kind)
            if action is None:
                return False
            if action >= 0:
                return True
            rule = self.table.rules[-action - 1]
            del states[len(states) - rule.size :]
            states.append(self.table.states[states[-1]][rule.origin])
            if states[-1] == self.table.end:
                return True


def _items_of(row: dict[str, int]) -> str | None:
    for body, item in BODIES.items():
        if body in row or item in row:
            return item
    return None


def _forced(row: dict[str, int]) -> int | None:
    """The reduction that a state makes whatever follows, so that an error shows at its place."""
    actions = {action for symbol, action in row.items() if not symbol.islower()}
    return actions.pop() if len(actions) == 1 and min(actions) < 0 else None
