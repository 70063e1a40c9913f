"""`checkpoint` sections, typed: which parameters lie where, and that each has exactly one place.

Independent of sizes. Lines that take a part's names from another section are written out, so a
model's names are lines alone, each of one kind of foreign tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from msgspec import structs

from fllmc.frontend import ast
from fllmc.frontend.checkpoint_errors import (
    BadForeignName,
    CheckpointCircle,
    UnknownPlace,
)
from fllmc.frontend.errors import UnknownBlock, UnknownDim
from fllmc.frontend.library import Module
from fllmc.frontend.parser import parse
from fllmc.frontend.section_errors import UnknownSection
from fllmc.frontend.semantics.blocks import refs
from fllmc.frontend.semantics.coverage import uncovered
from fllmc.frontend.semantics.foreign_lines import (
    Line,
    Names,
    Spot,
    Term,
    path_name,
    shown,
    within,
)
from fllmc.frontend.semantics.foreign_places import Misplaced, Place, PlacePart, resolved
from fllmc.frontend.semantics.layouts import typed_layout
from fllmc.frontend.semantics.typed import Block, Key, Param
from fllmc.ir.diagnostics import Diagnostic

PLACEHOLDER = re.compile(r"\{([^{}]*)\}")


def typed_names(
    section: ast.Checkpoint,
    module: Module,
    modules: Mapping[str, Module],
    blocks: Mapping[Key, Block],
) -> tuple[Names | None, tuple[Diagnostic, ...]]:
    """The section written out, and every mistake in it; None where its subject is unknown."""
    reader = _Reader(modules, blocks)
    names = reader.section(section, module)
    if names is not None and not reader.found:
        reader.found.extend(uncovered(names, section, blocks))
    return names, tuple(reader.found)


class _Reader:
    """Reads one section and those that it uses."""

    def __init__(self, modules: Mapping[str, Module], blocks: Mapping[Key, Block]) -> None:
        self.modules = modules
        self.blocks = blocks
        self.found: list[Diagnostic] = []
        self.open: list[tuple[str, str]] = []

    def section(self, section: ast.Checkpoint, module: Module) -> Names | None:
        """The section of a module, written out."""
        bound = module.find("block", section.subject.text)
        if bound is None or not isinstance(bound.section, ast.Block):
            if section.subject.text not in module.lost:
                where, known = section.subject, module.known("block")
                self.found.append(UnknownBlock(where.span, where.text, known))
            return None
        key = Key(bound.file, bound.section.name.text)
        self.open.append((module.file, section.name.text))
        lines: list[Line] = []
        ignored: list[str] = []
        config: list[ast.ConfigDim | ast.ConfigValue] = []
        for item in section.items:
            match item:
                case ast.Ignored(name=name):
                    ignored.append(PLACEHOLDER.sub("*", name.value))
                case ast.Config(items=items):
                    config.extend(items)
                    self.found.extend(_unknown_dims(items, module))
                case ast.Mapped(layout=ast.Name()):
                    inner = self.part(item, key, module)
                    lines += inner.lines if inner else ()
                    ignored += inner.ignored if inner else ()
                    config += inner.config if inner else ()
                case ast.Mapped():
                    lines += self.line(item, key, module)
        self.open.pop()
        unique = tuple({_key(each): each for each in config}.values())
        return Names(section.name, key, tuple(lines), tuple(dict.fromkeys(ignored)), unique)

    def line(self, item: ast.Mapped, subject: Key, module: Module) -> Iterator[Line]:
        """The line, or nothing after a report."""
        assert isinstance(item.layout, ast.Layout)
        spots = [spot for place in _places(item.place) if (spot := self.spot(place, item, subject))]
        if len(spots) < sum(1 for _ in _places(item.place)):
            return
        indices = [name for _, name in spots[0].indexed if isinstance(name, str)]
        names = tuple(self.foreign(name, indices, module) for name in item.names)
        shapes = [(spot.name, spot.rest, spot.param) for spot in spots]
        layout, found = typed_layout(item.layout, item.splits, shapes, module.dims)
        self.found.extend(found)
        if layout is not None:
            yield Line(item.span, tuple(spots), names, layout)

    def spot(self, place: list[PlacePart], item: ast.Mapped, subject: Key) -> Spot | None:
        """The parameter at a place; None after a report."""
        found = self.place(place, item, subject)
        if found is None:
            return None
        assert isinstance(found.member, Param)
        dims, stacks = found.member.stored, len(found.indexed)
        lead = zip(dims, found.left, strict=False)
        return Spot(
            found.path,
            path_name(found.path),
            (*found.indexed, *lead),
            stacks,
            dims[len(found.left) :],
            found.member,
            found.period,
            found.layers,
        )

    def place(
        self, place: list[PlacePart], item: ast.Mapped, subject: Key, wanted: Key | None = None
    ) -> Place | None:
        """Where a place leads; None after a report."""
        try:
            found = resolved(place, subject, self.blocks, wanted)
            taken = (*(name for _, name in found.indexed), *found.left)
            names = [name for name in taken if isinstance(name, str)]
            if len(set(names)) < len(names):
                raise Misplaced("an index is used twice")
        except Misplaced as wrong:
            span = wrong.span or item.place.span
            text, reason = shown(item.place), str(wrong)
            self.found.append(
                UnknownPlace(span, wrong.name, wrong.known, text, subject.name, reason)
            )
            return None
        return found

    def part(self, item: ast.Mapped, subject: Key, module: Module) -> Names | None:
        """The names of a block within, by another section, under a foreign prefix."""
        assert isinstance(item.layout, ast.Name)
        wish = item.layout
        bound = module.find("checkpoint", wish.text)
        if bound is None or not isinstance(bound.section, ast.Checkpoint):
            if wish.text not in module.lost:
                known = module.known("checkpoint")
                self.found.append(UnknownSection(wish.span, wish.text, known, "checkpoint section"))
            return None
        if (bound.file, wish.text) in self.open:
            self.found.append(CheckpointCircle(wish.span, wish.text))
            return None
        inner = self.section(bound.section, self.modules[bound.file])
        if inner is None:
            return None
        found = self.place(next(_places(item.place)), item, subject, inner.subject)
        if found is None:
            return None
        indices = [name for _, name in found.indexed if isinstance(name, str)]
        prefixes = [self.foreign(name, indices, module) for name in item.names[:1]]
        lines = [within(line, found, prefixes[0]) for line in inner.lines]
        before = "".join(p if isinstance(p, str) else "*" for p in prefixes[0])
        ignored = tuple(f"{before}.{name}" if before else name for name in inner.ignored)
        return structs.replace(inner, lines=tuple(lines), ignored=ignored)

    def foreign(
        self, name: ast.String, indices: list[str], module: Module
    ) -> tuple[str | Term, ...]:
        """A foreign name, its numbers read."""
        parts: list[str | Term] = []
        used: set[str] = set()
        for number, text in enumerate(PLACEHOLDER.split(name.value)):
            if number % 2 == 0:
                parts += [text] if text else []
                continue
            expr = _expression(text)
            named = [ref.name for ref in refs(expr)] if expr else []
            unknown = [each for each in named if each not in indices and each not in module.dims]
            if expr is None or unknown:
                reason = f"`{text}` is no sum of indices and dims"
                reason = f"`{unknown[0]}` is neither an index nor a dim" if unknown else reason
                self.found.append(BadForeignName(name.span, reason))
                continue
            used.update(named)
            parts.append(Term(expr, tuple((each, each) for each in indices)))
        for index in indices:
            if index not in used:
                self.found.append(BadForeignName(name.span, f"it lacks `{{{index}}}`"))
        return tuple(parts)


def _places(place: ast.Place) -> Iterator[list[PlacePart]]:
    """The places that alternatives stand for, in order."""
    options = next((p.options for p in place.parts if isinstance(p, ast.Alternatives)), None)
    for option in options or (None,):
        parts: list[PlacePart] = []
        for part in place.parts:
            if not isinstance(part, ast.Alternatives):
                parts.append(part)
            elif isinstance(option, ast.Name):
                parts.append(option)
        yield parts


def _expression(text: str) -> ast.Expr | None:
    tree, mistakes = parse(f"fllm 1 dims {{ x = {text} }}", "name")
    dims = tree.sections[0] if tree.sections else None
    if mistakes or not isinstance(dims, ast.Dims) or len(dims.items) != 1:
        return None
    return dims.items[0].size


def _unknown_dims(
    items: tuple[ast.ConfigDim | ast.ConfigValue, ...], module: Module
) -> Iterator[Diagnostic]:
    for item in items:
        if isinstance(item, ast.ConfigDim) and item.dim.text not in module.dims:
            yield UnknownDim(item.dim.span, item.dim.text, tuple(module.dims))


def _key(item: ast.ConfigDim | ast.ConfigValue) -> str:
    return item.dim.text if isinstance(item, ast.ConfigDim) else f'"{item.key.value}"'
