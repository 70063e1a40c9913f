"""Reading the text form back. Whatever is wrong is a diagnostic at its place."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar, get_args

import msgspec

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.errors import MissingAttribute, Repeated, UnknownWord, UnreadableText
from fllmc.ir.span import Span
from fllmc.ir.text_lexer import Source, Token
from fllmc.ir.text_words import declared, is_pair, is_sequence
from fllmc.ir.types import DTYPE_BYTES, Dim, Type

Item = TypeVar("Item")
_DIGITS = 18


class Reader:
    """A position among the tokens, and the small rules that all larger ones are made of."""

    def __init__(self, text: str, file: str) -> None:
        self.source = Source(text, file)
        self.tokens = self.source.tokens()
        self.at = 0

    @property
    def next(self) -> Token:
        """The token to be read next."""
        return self.tokens[self.at]

    def span(self, first: int) -> Span:
        """From the token of that number to the last one read."""
        last = self.tokens[max(self.at - 1, first)]
        return self.source.span(self.tokens[first].start, last.start + len(last.text))

    def here(self) -> Span:
        """The place of the next token."""
        return self.source.span(self.next.start, self.next.start + len(self.next.text))

    def wrong(self, diagnostic: Diagnostic) -> NoReturn:
        """Give up with this diagnostic."""
        raise DiagnosticError(diagnostic)

    def unlike(self, wanted: str) -> NoReturn:
        """Give up: the next token is not what is wanted."""
        self.wrong(UnreadableText(self.here(), wanted, self.next.shown()))

    def sees(self, text: str) -> bool:
        """Whether the next token is this sign or bare word."""
        return self.next.text == text and self.next.kind in ("sign", "name")

    def skip(self, text: str) -> bool:
        """Read this sign or word if it comes next."""
        if self.sees(text):
            self.at += 1
            return True
        return False

    def expect(self, text: str) -> None:
        """Read this sign or word."""
        if not self.skip(text):
            self.unlike(f"`{text}`")

    def take(self, kind: str, wanted: str) -> str:
        """Read a token of a kind."""
        if self.next.kind != kind:
            self.unlike(wanted)
        self.at += 1
        return self.tokens[self.at - 1].text

    def name(self, wanted: str = "a name") -> str:
        """A bare or quoted string."""
        if self.next.kind == "name":
            return self.take("name", wanted)
        text = self.take("string", wanted)
        try:
            return str(json.loads(text))
        except ValueError:
            self.at -= 1
            self.unlike("a string as JSON writes it")

    def word(self, what: str, known: tuple[str, ...]) -> str:
        """One of the known names."""
        span = self.here()
        found = self.name(f"the name of a {what}")
        if found not in known:
            self.wrong(UnknownWord(span, what, found, known))
        return found

    def integer(self, kind: str = "number", wanted: str = "a whole number") -> int:
        """A whole number, or the one in `%12` or `!12`."""
        text = self.take(kind, wanted).lstrip("%!")
        if len(text) > _DIGITS or not text.lstrip("-").isdigit():
            self.at -= 1
            self.unlike(wanted)
        return int(text)

    def listed(self, item: Callable[[], Item]) -> tuple[Item, ...]:
        """One or more items with commas between."""
        found = [item()]
        while self.skip(","):
            found.append(item())
        return tuple(found)

    def items(self, end: str, item: Callable[[], Item]) -> tuple[Item, ...]:
        """Items with commas between and maybe behind, up to and with the end sign."""
        found: list[Item] = []
        while not self.skip(end):
            found.append(item())
            if not self.skip(","):
                self.expect(end)
                break
        return tuple(found)

    def dim(self) -> Dim:
        """`heads@tensor`."""
        name = self.name("a dim")
        if not self.skip("@"):
            return Dim(name)
        if self.skip("("):
            return Dim(name, self.items(")", lambda: self.name("an axis")))
        return Dim(name, (self.name("an axis"),))

    def type(self) -> Type:
        """`bf16[batch@data, seq]+tensor`."""
        dtype, index = self.name("a type"), ""
        if self.sees("of"):
            self.at += 1
            index = self.name("a dim")
        elif dtype not in DTYPE_BYTES:
            dtype, index = "i64", dtype
        self.expect("[")
        dims = self.items("]", self.dim)
        combine, open_axes = "sum", list[str]()
        while self.sees("+") or self.sees("^"):
            combine = "sum" if self.skip("+") else "max"
            self.skip("^")
            if self.skip("("):
                self.expect(")")
            else:
                open_axes.append(self.name("an axis"))
        return Type(dtype, dims, tuple(open_axes), combine, index)

    def value(self, hint: Any) -> Any:
        """A field's value, as its type says."""
        if is_sequence(hint):
            self.expect("[")
            return self.items("]", lambda: self.value(get_args(hint)[0]))
        if is_pair(hint):
            first = self.name()
            self.expect("=")
            return (first, self.name())
        if hint is Dim:
            return self.dim()
        if hint is bool:
            return self.word("truth value", ("false", "true")) == "true"
        if hint is int:
            return self.integer()
        if hint is float:
            infinite = self.sees("inf") or self.sees("nan")
            return float(self.take("name" if infinite else "number", "a number"))
        return self.encoded(hint)

    def encoded(self, hint: Any) -> Any:
        """A string, or one that holds JSON when the field's type is neither plain nor text."""
        held = self.name()
        try:
            return msgspec.convert(held, hint)
        except msgspec.ValidationError:
            pass
        try:
            return msgspec.json.decode(held.encode(errors="replace"), type=hint)
        except msgspec.MsgspecError:
            self.at -= 1
            self.unlike(f"a value of {getattr(hint, '__name__', hint)}")

    def fields(
        self, cls: type[msgspec.Struct], end: str, owner: str, skip: tuple[str, ...] = ()
    ) -> dict[str, Any]:
        """Named fields up to the end sign, checked to be all that have no default."""
        known = {f.name: f for f in declared(cls) if f.name not in skip}
        found: dict[str, Any] = {}
        first = self.at

        def one() -> None:
            place = self.here()
            name = self.word(f"attribute of {owner}", tuple(known))
            if name in found:
                self.wrong(Repeated(place, "attribute", name))
            self.expect("=")
            found[name] = self.value(known[name].type)

        self.items(end, one)
        self.complete(cls, found, owner, self.span(first), skip)
        return found

    def complete(
        self,
        cls: type[msgspec.Struct],
        found: dict[str, Any],
        owner: str,
        span: Span,
        skip: tuple[str, ...] = (),
    ) -> None:
        """Give up when a field without a default was not given."""
        for field in declared(cls):
            if field.required and field.name not in found and field.name not in skip:
                self.wrong(MissingAttribute(span, owner, field.name))
