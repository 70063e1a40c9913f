"""`--set KEY=VALUE`: fields replaced in the tree, so that they are checked like written ones.

The options are kept as a text of their own, one a line, named `--set`; places of mistakes in them
are places in that text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TypeVar, cast

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.parser import parse
from fllmc.frontend.section_errors import UnknownOverride
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

FILE = "--set"
CHOICES = ("train", "data", "schedule", "mesh", "checkpoint")
RECORDS = ("train", "data", "schedule")
WORDS = frozenset({"source", "tokenizer"})
"""Fields whose value may be a text without quotes."""

Section = TypeVar("Section", ast.Train, ast.Data, ast.Schedule)


class Override(Struct, frozen=True):
    """One option: `group` is one of `CHOICES` or `dims`, `key` maybe empty."""

    group: str
    key: str
    value: ast.Expr
    span: Span


class Overrides(Struct, frozen=True):
    """All options, and their text."""

    items: tuple[Override, ...] = ()
    text: str = ""
    found: tuple[Diagnostic, ...] = ()

    def choice(self, group: str) -> ast.Name | None:
        """The name that `--set group=NAME` gives."""
        for item in self.items:
            if item.group == group and not item.key:
                name = item.value.name if isinstance(item.value, ast.Ref) else ""
                return ast.Name(item.span, name)
        return None

    def sets(self, group: str, key: str) -> bool:
        """Whether `--set group.key=...` is given."""
        return any(item.group == group and item.key == key for item in self.items)

    def applied(self, group: str, section: Section) -> Section:
        """The section with its overridden fields replaced or added."""
        fields = [
            ast.Field(item.span, ast.Name(item.span, item.key), item.value)
            for item in self.items
            if item.group == group and item.key
        ]
        if not fields:
            return section
        changed = {field.key.text for field in fields}
        if isinstance(section, ast.Schedule):
            items = [i for i in section.items if not _is_field(i, changed)]
            return cast(Section, structs.replace(section, items=(*items, *fields)))
        kept = [
            field
            for field in section.fields
            if isinstance(field, ast.FieldIn) or field.key.text not in changed
        ]
        return cast(Section, structs.replace(section, fields=(*kept, *fields)))

    def dims(self) -> dict[str, ast.Dim]:
        """The dims whose size is set."""
        return {
            item.key: ast.Dim(item.span, ast.Name(item.span, item.key), item.value)
            for item in self.items
            if item.group == "dims"
        }


def read_overrides(given: Mapping[str, str], dims: Iterable[str]) -> Overrides:
    """The options, read; `dims` are those that the spec declares."""
    items: list[Override] = []
    found: list[Diagnostic] = []
    lines = [f"{key}={value}".replace("\n", " ") for key, value in given.items()]
    start = 0
    for number, (line, key, value) in enumerate(zip(lines, given, given.values(), strict=True), 1):
        span = Span(FILE, start, start + len(line), number, 1, number, len(line) + 1)
        start += len(line) + 1
        group, _, field = key.partition(".")
        mistake = _known(span, key, group, field, tuple(dims))
        node = _value(value, "" if group == "dims" else field, span)
        if mistake:
            found.append(mistake)
        elif node is None:
            reason = f"`{value}` is not a value"
            found.append(UnknownOverride(span, key, (), reason))
        else:
            items.append(Override(group, field, node, span))
    return Overrides(tuple(items), "\n".join(lines), tuple(found))


def _known(
    span: Span, key: str, group: str, field: str, dims: tuple[str, ...]
) -> Diagnostic | None:
    names = (*CHOICES, *(f"{each}.KEY" for each in RECORDS), "dims.DIM")
    if group == "dims" and field:
        candidates = tuple(f"dims.{name}" for name in dims)
        return None if field in dims else UnknownOverride(span, key, candidates, "no such dim")
    if (group in CHOICES and not field) or (group in RECORDS and field.isidentifier()):
        return None
    candidates = tuple(f"{each}.{field}" for each in (*RECORDS, "dims")) if field else names
    return UnknownOverride(span, key, candidates, "keys are " + ", ".join(names))


def _value(text: str, field: str, span: Span) -> ast.Expr | None:
    """The value as a record would hold it, every place the option's; None if it is none."""
    tree, mistakes = parse(f"fllm 1 data x {{ key: {text} }}", FILE)
    sections = tree.sections
    if not mistakes and len(sections) == 1 and isinstance(sections[0], ast.Data):
        fields = sections[0].fields
        if len(fields) == 1:
            value = cast(ast.Expr, _placed(fields[0].value, span))
            written = isinstance(value, ast.String | ast.Call)
            if field not in WORDS or written or _is_bytes(value):
                return value
    return ast.String(span, text) if field in WORDS else None


def _is_bytes(value: ast.Expr) -> bool:
    return isinstance(value, ast.Ref) and value.name == "bytes"


def _placed(node: object, span: Span) -> object:
    """The node with every place in it replaced."""
    if isinstance(node, tuple):
        return tuple(_placed(item, span) for item in cast("tuple[object, ...]", node))
    if not isinstance(node, ast.Node):
        return node
    inner = {
        field: _placed(getattr(node, field), span)
        for field in node.__struct_fields__
        if field != "span"
    }
    return structs.replace(node, span=span, **inner)


def _is_field(item: ast.ScheduleItem, keys: set[str]) -> bool:
    return isinstance(item, ast.Field) and item.key.text in keys
