"""The text form of pipelines: `parse_pipeline(print_pipeline(p)) == p`, for every pipeline.

    inline,apply-adapter{freeze=["*"],lora=[{selector=body.*,rank=8,alpha=16.0}]},drop-unused

A value is a number, `true`, `false`, `null`, a bare or quoted string, `[...]` or `{name=value}`.
Options and fields at their defaults are not printed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn, cast

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import Span
from fllmc.passes.base import Pass
from fllmc.passes.errors import UnknownOption, UnknownPass, UnreadablePipeline, WrongOption

WORDS: Final[Mapping[str, Any]] = {
    "true": True,
    "false": False,
    "null": None,
    "inf": float("inf"),
    "nan": float("nan"),
}
_BARE: Final = re.compile(r"[A-Za-z_*][A-Za-z0-9_.*'-]*")
_TOKEN: Final = re.compile(
    r"""(?P<space>\s+)|(?P<bare>[A-Za-z_*][A-Za-z0-9_.*'-]*)|(?P<string>"(?:[^"\\]|\\.)*")"""
    r"""|(?P<number>-?(?:\d+(?:\.\d*)?(?:[eE][+-]?\d+)?|inf))|(?P<sign>[\[\]{},=])|(?P<other>.)""",
    re.DOTALL,
)
_MAX_DEPTH: Final = 32
_MAX_DIGITS: Final = 400


def print_pipeline(passes: Sequence[Pass]) -> str:
    """The pipeline on one line."""
    return ",".join(print_pass(step) for step in passes)


def print_pass(step: Pass) -> str:
    """A pass with its options, `recompute{cheap=false}`."""
    options = _fields(step)
    return f"{step.name}{{{options}}}" if options else step.name


def _fields(struct: msgspec.Struct) -> str:
    shown: list[str] = []
    for info in msgspec.structs.fields(type(struct)):
        held = getattr(struct, info.name)
        if info.required or _text(held) != _text(info.default):
            shown.append(f"{info.encode_name}={_text(held)}")
    return ",".join(shown)


def _text(value: Any) -> str:
    """A value; told from its default by its text, in which -0.0 is not 0.0."""
    if isinstance(value, msgspec.Struct):
        return f"{{{_fields(value)}}}"
    if isinstance(value, tuple):
        items = cast("tuple[Any, ...]", value)
        return f"[{','.join(map(_text, items))}]"
    if isinstance(value, str):
        return value if _BARE.fullmatch(value) and value not in WORDS else json.dumps(value)
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return repr(value)


def parse_pipeline(
    text: str, known: Sequence[type[Pass]], file: str = "pipeline"
) -> tuple[Pass, ...]:
    """The passes that the text spells; DiagnosticError with the place where it spells none."""
    return _Reader(text, known, file).passes()


class _Reader:
    """A position among the tokens."""

    def __init__(self, text: str, known: Sequence[type[Pass]], file: str) -> None:
        self.text, self.file = text, file
        self.known = {step.name: step for step in known}
        self.tokens = [found for found in _TOKEN.finditer(text) if found.lastgroup != "space"]
        self.at = 0

    def passes(self) -> tuple[Pass, ...]:
        found = [self.one()] if self.tokens else []
        while self.at < len(self.tokens):
            self.expect(",")
            found.append(self.one())
        return tuple(found)

    def one(self) -> Pass:
        start = self.at
        if self.kind() != "bare":
            self.unlike("the name of a pass")
        name = self.take()
        if name not in self.known:
            raise DiagnosticError(UnknownPass(self.span(start), name, tuple(self.known)))
        cls = self.known[name]
        options = self.struct(cls) if self.sees("{") else dict[str, Any]()
        try:
            return msgspec.convert(options, cls)
        except msgspec.ValidationError as error:
            raise DiagnosticError(WrongOption(self.span(start), name, str(error))) from None

    def struct(self, cls: type[Pass] | None = None, depth: int = 0) -> dict[str, Any]:
        """`{name=value, ...}`; the names are checked against a pass's options."""
        options = None if cls is None else [f.encode_name for f in msgspec.structs.fields(cls)]
        self.expect("{")
        found: dict[str, Any] = {}
        while not self.sees("}"):
            start = self.at
            if self.kind() != "bare" or self.shown() in found:
                self.unlike("a new name")
            name = self.take()
            if cls is not None and options is not None and name not in options:
                mistake = UnknownOption(self.span(start), cls.name, name, tuple(options))
                raise DiagnosticError(mistake)
            self.expect("=")
            found[name] = self.value(depth + 1)
            if not self.sees("}"):
                self.expect(",")
        self.expect("}")
        return found

    def value(self, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            self.unlike("fewer brackets within brackets")
        if self.sees("{"):
            return self.struct(depth=depth)
        if self.sees("["):
            return self.items(depth)
        match self.kind():
            case "bare":
                word = self.take()
                return WORDS.get(word, word)
            case "number":
                return self.number()
            case "string":
                return self.string()
            case _:
                self.unlike("a value")

    def items(self, depth: int) -> list[Any]:
        self.expect("[")
        found: list[Any] = []
        while not self.sees("]"):
            found.append(self.value(depth + 1))
            if not self.sees("]"):
                self.expect(",")
        self.expect("]")
        return found

    def number(self) -> int | float:
        text = self.shown()
        if len(text) > _MAX_DIGITS:
            self.unlike("a shorter number")
        self.at += 1
        return int(text) if text.lstrip("-").isdecimal() else float(text)

    def string(self) -> str:
        try:
            found = str(json.loads(self.shown()))
        except ValueError:
            self.unlike("a string as JSON writes it")
        self.at += 1
        return found

    def kind(self) -> str:
        """The kind of the next token, or `end`."""
        return str(self.tokens[self.at].lastgroup) if self.at < len(self.tokens) else "end"

    def shown(self) -> str:
        return self.tokens[self.at].group() if self.at < len(self.tokens) else ""

    def sees(self, sign: str) -> bool:
        return self.kind() == "sign" and self.shown() == sign

    def take(self) -> str:
        self.at += 1
        return self.tokens[self.at - 1].group()

    def expect(self, sign: str) -> None:
        if not self.sees(sign):
            self.unlike(f"`{sign}`")
        self.at += 1

    def unlike(self, wanted: str) -> NoReturn:
        found = f"`{self.shown()}`" if self.at < len(self.tokens) else "the end"
        raise DiagnosticError(UnreadablePipeline(self.span(self.at), wanted, found))

    def span(self, first: int) -> Span:
        """The stretch from a token to the last one read, or the place behind the last."""
        if first >= len(self.tokens):
            start = end = len(self.text)
        else:
            start = self.tokens[first].start()
            end = self.tokens[max(first, self.at - 1)].end()
        (line, column), (end_line, end_column) = self.place(start), self.place(end)
        return Span(self.file, start, end, line, column, end_line, end_column)

    def place(self, at: int) -> tuple[int, int]:
        """Line and column, from 1."""
        before = self.text[:at]
        return before.count("\n") + 1, at - (before.rfind("\n") + 1) + 1
