"""Names of a spec: where each is declared, and where it is used, through imports.

Names are found in the syntax tree, so they are there while a file has mistakes. A name in a block
is its own name first, then a dim, then a section.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.library import Library, Module
from fllmc.ir.span import Span

What = Literal["dim", "section", "local", "axis"]

KEYS: frozenset[tuple[type, str]] = frozenset(
    {
        (ast.Argument, "key"),
        (ast.Field, "key"),
        (ast.Attribute, "name"),
        (ast.Selector, "segments"),
        (ast.Place, "parts"),
        (ast.Side, "side"),
        (ast.ConfigDim, "key"),
    }
)
"""Names that are words of a record or parts of a path, not names of something declared."""


REFERS = frozenset({"subject", "model", "train", "mesh"})
"""The fields of sections that name another section."""


class Symbol(Struct, frozen=True):
    """Something declared: a dim or section of a file, a name within a section, a mesh's axis."""

    what: What
    name: str
    place: Span


class Mention(Struct, frozen=True):
    """A name at a place, and what it stands for; a declaration mentions itself.

    `owner` is the section that it stands in, if that has a name.
    """

    span: Span
    symbol: Symbol
    owner: str = ""


def mentions(library: Library, file: str) -> tuple[Mention, ...]:
    """All names of a file that stand for something, in order."""
    module = library.modules.get(file)
    if module is None:
        return ()
    found = sorted(_Walk(library, module).file(), key=lambda m: (m.span.start, m.span.end))
    return tuple(found)


def at(found: tuple[Mention, ...], offset: int) -> Mention | None:
    """The name at or just before an offset."""
    hits = [each for each in found if each.span.start <= offset <= each.span.end]
    return min(hits, key=lambda each: each.span.end - each.span.start, default=None)


class _Walk:
    """Goes through one file."""

    def __init__(self, library: Library, module: Module) -> None:
        self.library = library
        self.module = module
        self.owner = ""
        self.locals: Mapping[str, Symbol] = {}
        self.declared: frozenset[Span] = frozenset()
        axes = (s for s in module.tree.sections if isinstance(s, ast.Mesh))
        self.axes = {
            f.key.text: Symbol("axis", f.key.text, f.key.span) for s in axes for f in s.fields
        }

    def file(self) -> Iterator[Mention]:
        """Every section."""
        for section in self.module.tree.sections:
            if isinstance(section, ast.Import):
                yield from self.imported(section)
                continue
            name = getattr(section, "name", None)
            self.owner = name.text if name else ""
            self.locals = dict(self.given(section))
            if name:
                yield self.mention(name.span, Symbol("section", name.text, name.span))
            self.declared = frozenset(symbol.place for symbol in self.locals.values())
            for symbol in self.locals.values():
                yield self.mention(symbol.place, symbol)
            if isinstance(section, ast.Mesh):
                for field in section.fields:
                    yield self.mention(field.key.span, self.axes[field.key.text])
            for field in REFERS & frozenset(section.__struct_fields__):
                referred = getattr(section, field)
                yield from self.of_section(referred) if referred else ()
            yield from self.inside(section, frozenset({"name", *REFERS}))

    def imported(self, section: ast.Import) -> Iterator[Mention]:
        """The names of an import stand for sections of another file."""
        for name in section.names:
            symbol = self.section(name.text)
            if symbol:
                yield self.mention(name.span, symbol)

    def given(self, section: ast.Section) -> Iterator[tuple[str, Symbol]]:
        """What a section declares for its own use."""
        names: list[ast.Name] = []
        if isinstance(section, ast.Block):
            names += [each.name for each in section.inputs]
        if isinstance(section, ast.Optimizer | ast.Rate):
            for each in section.parameters:
                names += each.parts or (each.name,)
        if isinstance(section, ast.Block | ast.Optimizer | ast.Rate):
            for item in section.items:
                name = getattr(item, "name", None) or getattr(item, "target", None)
                names += [name] if isinstance(name, ast.Name) else []
        seen: set[str] = set()
        for name in names:
            if name.text not in seen:
                seen.add(name.text)
                yield name.text, Symbol("local", name.text, name.span)

    def inside(self, node: Any, leave: frozenset[str] = frozenset()) -> Iterator[Mention]:
        """The names under a node."""
        match node:
            case ast.Name(span=span, text=text) | ast.Ref(span=span, name=text):
                symbol = self.resolved(text, isinstance(node, ast.Ref))
                if symbol and span not in self.declared:
                    yield self.mention(span, symbol)
            case ast.Sub(block=block) | ast.Layer(block=block):
                yield from self.of_section(block)
            case ast.Stack(block=block, over=over, pattern=pattern):
                yield from self.of_section(block)
                yield from self.inside(pattern)
                yield from self.inside(over)
            case ast.Mapped(layout=ast.Name() as layout):
                yield from self.of_section(layout)
            case ast.Shard(dims=dims, axes=axes, selector=selector):
                yield from self.inside(dims)
                yield from self.on_axes(axes)
                yield from self.inside(selector)
            case ast.Zero(axes=axes):
                yield from self.on_axes(axes)
            case tuple() | list():
                for each in node:
                    yield from self.inside(each)
            case msgspec.Struct():
                for name in node.__struct_fields__:
                    if name not in leave and (type(node), name) not in KEYS:
                        yield from self.inside(getattr(node, name))
            case _:
                return

    def of_section(self, name: ast.Name) -> Iterator[Mention]:
        """A name that can stand for a section alone."""
        symbol = self.section(name.text)
        if symbol:
            yield self.mention(name.span, symbol)

    def on_axes(self, names: tuple[ast.Name, ...]) -> Iterator[Mention]:
        """Axes of the file's meshes."""
        for name in names:
            if name.text in self.axes:
                yield self.mention(name.span, self.axes[name.text])

    def resolved(self, text: str, expression: bool) -> Symbol | None:
        """What a name stands for here."""
        local, dim = self.locals.get(text), self.dim(text)
        first, second = (local, dim) if expression else (dim, local)
        return first or second or self.section(text)

    def dim(self, text: str) -> Symbol | None:
        declared = self.module.dims.get(text)
        return Symbol("dim", text, declared[0].name.span) if declared else None

    def section(self, text: str) -> Symbol | None:
        for (_, name), bound in self.module.names.items():
            if name == text:
                return Symbol("section", text, bound.section.name.span)
        return None

    def mention(self, span: Span, symbol: Symbol) -> Mention:
        return Mention(span, symbol, self.owner)
