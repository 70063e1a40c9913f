"""The one way to write a `.fllm` file: its own tokens and comments, laid out anew.

Formatting never adds, drops or reorders a token, keeps every comment, and is idempotent. Breaking
is by the rules of the grammar, so this file knows kinds of rules, hardly any rule by name.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

from msgspec import Struct

from fllmc.frontend.layout import Cat, Doc, Group, Line, Nest, Own, Suffix, Text, cat, group, render
from fllmc.frontend.lexer import Token
from fllmc.frontend.parser import Parser, parse
from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.span import Span

CLOSER = {"LPAR": "RPAR", "LSQB": "RSQB", "LBRACE": "RBRACE"}
BODY_RULES = frozenset(
    {"dims", "block", "data", "train", "mesh", "optimizer", "rate", "schedule", "adapter", "lora"}
    | {"stage", "quantize", "target", "freeze_rows", "tune_rows", "checkpoint", "config", "repeat"}
)
"""Rules whose braces hold items, a line each."""
TIGHT_RULES = frozenset(
    {"call", "call_dims", "value_call", "index", "index_scalar", "attribute", "rename", "negative"}
    | {"number_negative", "power", "path", "selector", "place", "side"}
)
"""Rules whose parts touch."""
SPACED_COLONS = frozenset({"mapped", "mapped_as"})
"""Rules whose colon stands between two things that are as long as each other."""
CALL_LIKE_RULES = frozenset({"block", "optimizer", "rate"})
WRAPPING_RULES = frozenset({"path", "selector", "place", "file_bare"})
"""Rules around a list, which are not a part of it."""
PRODUCTS = frozenset({"STAR", "SLASH", "PERCENT"})
HARD = Line("", hard=True)


class Tree(Struct):
    """A rule and its parts: tokens, trees, and lists of both."""

    rule: str
    parts: list[Any]


def format_source(text: str, file: str = "<text>") -> str:
    """`text` in canonical form. Raises DiagnosticError when it has syntax errors."""
    _, found = parse(text, file)
    if found:
        raise DiagnosticError(*found)
    parser, tree = _read(text, file)
    formatted = render(_Formatter(parser.tokens, parser.comments).file(tree))
    if tokens(formatted) != tokens(text):
        raise InternalError(f"formatting {file} would change it")
    return formatted


def tokens(text: str) -> tuple[tuple[str, str], ...]:
    """The kinds and texts of the tokens of a `text` without errors: what formatting keeps."""
    parser, _ = _read(text, "")
    return tuple((t.kind, t.text) for t in parser.tokens)


def _read(text: str, file: str) -> tuple[Parser, Tree]:
    """Concrete syntax, and the parser that still holds the tokens and comments."""
    parser = Parser(text, file, _tree)
    return parser, parser.run()


def _tree(rule: str, parts: list[Any], span: Span) -> Any:
    """Concrete syntax: nothing is dropped, lists are flat."""
    if rule in ("empty", "absent"):
        return []
    if rule in ("one", "path_start"):
        return parts
    if parts and isinstance(parts[0], list) and rule not in WRAPPING_RULES:
        whole = cast("list[Any]", parts[0])
        whole.extend(parts[1:])
        return whole
    return Tree(rule, parts)


class _Formatter:
    """Turns trees into layout; each comment goes with the token before it on its line, or after."""

    def __init__(self, tokens: list[Token], comments: list[Token]) -> None:
        self.leading: dict[int, list[Token]] = {}
        self.trailing: dict[int, list[Token]] = {}
        self.gap: dict[int, bool] = {}
        """By start: whether a blank line stands before this token or comment."""
        everything = sorted([*tokens, *comments], key=lambda t: (t.span.start, t.span.end))
        for before, here in pairwise(everything):
            self.gap[here.span.start] = here.span.line - before.span.end_line > 1
        self._attach(everything)

    def _attach(self, everything: list[Token]) -> None:
        last: Token | None = None
        waiting: list[Token] = []
        for token in everything:
            if token.kind != "COMMENT":
                self.leading[token.span.start], waiting = waiting, []
                last = token
            elif last is not None and last.span.end_line == token.span.line:
                self.trailing.setdefault(last.span.start, []).append(token)
            else:
                waiting.append(token)

    def file(self, tree: Tree) -> Doc:
        """The header and the sections, a blank line between any two that aren't both imports."""
        *header, sections = tree.parts
        parts: list[Doc] = []
        items: list[Tree] = [Tree("header", header), *sections]
        for number, item in enumerate(items):
            both = number > 0 and items[number - 1].rule == item.rule == "import_"
            parts += self._item(item, number == 0, number > 0 and not both)
        parts += self._comments(self.leading[max(self.leading)], False)
        return cat(parts[1:])

    def _item(self, item: Any, first: bool, apart: bool = False) -> Iterator[Doc]:
        """A line end, the comments before `item`, and `item`; blank lines as they were."""
        token = next(_tokens(item))
        comments = self.leading.pop(token.span.start, [])
        yield from self._comments(comments, first, apart)
        if comments:
            yield from self._gap(token, False)
        else:
            yield from self._gap(token, apart, first)
        yield self._doc(item)

    def _comments(self, comments: list[Token], first: bool, apart: bool = False) -> Iterator[Doc]:
        for number, comment in enumerate(comments):
            start = number == 0
            yield from self._gap(comment, apart and start, first and start)
            yield Text(comment.text.rstrip())

    def _gap(self, token: Token, apart: bool, first: bool = False) -> Iterator[Doc]:
        yield HARD
        if not first and (apart or self.gap.get(token.span.start, False)):
            yield HARD

    def _doc(self, node: Any) -> Doc:
        if isinstance(node, Token):
            return self._token(node)
        if isinstance(node, list):
            return cat(map(self._doc, cast("list[Any]", node)))
        if node.rule == "binary":
            return self._chain(node)
        return self._rule(node)

    def _token(self, token: Token) -> Doc:
        parts: list[Doc] = [Own(c.text.rstrip()) for c in self.leading.pop(token.span.start, [])]
        parts.append(Text(token.text))
        parts += [Suffix(c.text.rstrip()) for c in self.trailing.get(token.span.start, [])]
        return cat(parts)

    def _rule(self, tree: Tree) -> Doc:
        """The parts side by side, with what stands between brackets as one part."""
        parts: list[Doc] = []
        for place, unit in enumerate(_units(tree.parts)):
            spaced = tree.rule not in TIGHT_RULES and place > 0 and unit != []
            if isinstance(unit, Token) and unit.kind == "COLON":
                spaced = tree.rule in SPACED_COLONS
            if isinstance(unit, Tree) and unit.rule == "brackets":
                spaced = spaced and not (tree.rule in CALL_LIKE_RULES and place == 2)
            if spaced:
                parts.append(Text(" "))
            parts.append(self._unit(unit, tree.rule))
        return cat(parts)

    def _unit(self, unit: Any, rule: str) -> Doc:
        if not (isinstance(unit, Tree) and unit.rule == "brackets"):
            return self._doc(unit)
        opener, *inner, closer = unit.parts
        if rule in BODY_RULES and opener.kind == "LBRACE":
            return self._body(opener, inner[0], closer)
        return self._brackets(opener, list(_flat(inner)), closer)

    def _body(self, opener: Token, items: list[Any], closer: Token) -> Doc:
        parts: list[Doc] = []
        for number, item in enumerate(items):
            parts += self._item(item, number == 0)
        parts += self._comments(self.leading.pop(closer.span.start, []), not items)
        end = [HARD] if parts or self.trailing.get(opener.span.start) else []
        return cat([self._token(opener), Nest(cat(parts)), *end, self._token(closer)])

    def _brackets(self, opener: Token, inner: list[Any], closer: Token) -> Doc:
        if not inner:
            return group(cat([self._token(opener), Line(""), self._token(closer)]))
        parts: list[Doc] = [Line("")]
        for place, node in enumerate(inner):
            parts.append(self._doc(node))
            comma = isinstance(node, Token) and node.kind == "COMMA"
            if comma and place < len(inner) - 1:
                parts.append(Line(" "))
        return group(
            cat([self._token(opener), Nest(cat(parts)), Line(""), self._token(closer)])
        )  # fmt: skip

    def _chain(self, tree: Tree) -> Group:
        """Sums and products: all operators of one rank break together."""
        left, sign, right = tree.parts
        links: list[tuple[Token, Any]] = [(sign, right)]
        product = sign.kind in PRODUCTS
        while (
            isinstance(left, Tree)
            and left.rule == "binary"
            and (left.parts[1].kind in PRODUCTS) == product
        ):
            links.append((left.parts[1], left.parts[2]))
            left = left.parts[0]
        first = self._doc(left)
        rest: list[Doc] = []
        for sign, operand in reversed(links):
            rest += [Line(" "), self._token(sign), Text(" "), self._doc(operand)]
        return group(Cat((first, Nest(cat(rest)))))


def _units(parts: list[Any]) -> Iterator[Any]:
    """The parts of a rule, those from a bracket to its partner joined."""
    waiting = list(reversed(parts))
    while waiting:
        part = waiting.pop()
        if not (isinstance(part, Token) and part.kind in CLOSER):
            yield part
            continue
        inside: list[Any] = [part]
        while True:
            inside.append(waiting.pop())
            if isinstance(inside[-1], Token) and inside[-1].kind == CLOSER[part.kind]:
                break
        yield Tree("brackets", inside)


def _flat(parts: list[Any]) -> Iterator[Any]:
    for part in parts:
        if isinstance(part, list):
            yield from cast("list[Any]", part)
        else:
            yield part


def _tokens(node: Any) -> Iterator[Token]:
    if isinstance(node, Token):
        yield node
        return
    parts = cast("list[Any]", node) if isinstance(node, list) else node.parts
    for part in parts:
        yield from _tokens(part)
