"""`checkpoint` sections, typed: which parameters lie where, and that each has exactly one place.

Independent of sizes. Lines that take a part's names from another section are written out, so a
model's names are lines alone, each of one kind of foreign tensor.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

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
    PLACE,
    Index,
    Line,
    Names,
    Spot,
    Term,
    every,
    shown,
    within,
)
from fllmc.frontend.semantics.layouts import typed_layout
from fllmc.frontend.semantics.typed import Block, Key, Nested, Param
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span

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
    return names, tuple(dict.fromkeys(reader.found))


Strides = tuple[tuple[str, int, int], ...]
"""Indices that count layers of one place in a pattern, as `Line.strides`."""


class Walked(NamedTuple):
    """The member at a place, its path with indices, those of stacks, and those left."""

    member: Param | Nested
    path: list[Index]
    indexed: list[tuple[str, Index]]
    left: list[ast.Ref | ast.Number]
    strides: Strides


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
                    for at in self.positions(item, key):
                        inner = self.part(item, key, module, at)
                        lines += inner.lines if inner else ()
                        ignored += inner.ignored if inner else ()
                        config += inner.config if inner else ()
                case ast.Mapped():
                    for at in self.positions(item, key):
                        lines += self.line(item, key, module, at)
        self.open.pop()
        unique = tuple({_key(each): each for each in config}.values())
        return Names(section.name, key, tuple(lines), tuple(dict.fromkeys(ignored)), unique)

    def positions(self, item: ast.Mapped, subject: Key) -> tuple[int, ...]:
        """The places in a pattern that have what is spoken of; -1 where there is no pattern."""
        block, place = self.blocks.get(subject), next(_places(item.place))
        for number, part in enumerate(place):
            if block is None or not isinstance(part, ast.Name) or part.text not in block.nested:
                break
            member = block.nested[part.text]
            block = self.blocks.get(member.block)
            index, rest = place[number + 1 : number + 2], place[number + 2 :]
            if member.period and block and index and isinstance(index[0], ast.Ref):
                layers = [block.nested[str(at)].block for at in range(member.period)]
                found = [at for at, each in enumerate(layers) if self.leads(each, rest)]
                return tuple(found) or (0,)
            if member.over:
                break
        return (-1,)

    def leads(self, key: Key, place: list[PlacePart]) -> bool:
        """Whether there is such a place in a block."""
        block = self.blocks.get(key)
        for part in place:
            if isinstance(part, ast.Name):
                members = {m.name: m for m in block.members} if block else {}
                member = members.get(part.text)
                if member is None:
                    return False
                block = self.blocks.get(member.block) if isinstance(member, Nested) else None
        return True

    def line(self, item: ast.Mapped, subject: Key, module: Module, at: int) -> Iterator[Line]:
        """The line, or nothing after a report; of a pattern for its layers at one place."""
        assert isinstance(item.layout, ast.Layout)
        walked = [self.spot(place, item, subject, at) for place in _places(item.place)]
        spots = [each[0] for each in walked if each]
        if len(spots) < len(walked):
            return
        strides = next((each[1] for each in walked if each), ())
        indices = [name for _, name in spots[0].indexed if isinstance(name, str)]
        names = tuple(self.foreign(name, indices, module) for name in item.names)
        shapes = [(spot.name, spot.rest, spot.param) for spot in spots]
        layout, found = typed_layout(item.layout, item.splits, shapes, module.dims)
        self.found.extend(found)
        if layout is not None:
            yield Line(item.span, tuple(spots), names, layout, strides)

    def spot(
        self, place: list[PlacePart], item: ast.Mapped, subject: Key, at: int
    ) -> tuple[Spot, Strides] | None:
        """The parameter at a place, and how its indices count layers; None after a report."""
        found = self.walk(place, item, subject, at)
        if found is None:
            return None
        member, path, indexed, left, strides = found
        if not isinstance(member, Param):
            inner = tuple(self.blocks[member.block].params)
            reason = "this is a block: a parameter of it is wanted"
            self.unknown(item.place, item.place.span, subject, reason, inner)
            return None
        dims, stacks = member.stored, len(indexed)
        if len(left) > len(dims):
            self.unknown(item.place, item.place.span, subject, "more indices than dims")
            return None
        indexed += [(dim, _index(at)) for dim, at in zip(dims, left, strict=False)]
        name = ".".join(part for part in path if isinstance(part, str) and part[0] != "{")
        spot = Spot(tuple(path), name, tuple(indexed), stacks, dims[len(left) :], member)
        return spot, strides

    def walk(
        self, place: list[PlacePart], item: ast.Mapped, subject: Key, pattern: int
    ) -> Walked | None:
        """The member at a place, its path with indices, those of stacks, and those left.

        Last is how indices count layers, where they are those at one place of a pattern.
        """
        strides: Strides = ()
        member: Param | Nested | None = None
        path: list[Index] = []
        indexed: list[tuple[str, Index]] = []
        left: list[ast.Ref | ast.Number] = []
        block = self.blocks.get(subject)
        for part in place:
            if isinstance(part, ast.Name):
                if left or (isinstance(member, Nested) and member.over and not _done(path)):
                    reason = (
                        f"`{member.name}` is a stack: write `{member.name}[i]`" if member else ""
                    )
                    self.unknown(item.place, part.span, subject, reason or "an index too many")
                    return None
                members = {m.name: m for m in block.members} if block else {}
                member = members.get(part.text)
                if member is None:
                    reason = "unknown name"
                    self.unknown(item.place, part.span, subject, reason, tuple(members), part.text)
                    return None
                path.append(part.text)
                block = self.blocks.get(member.block) if isinstance(member, Nested) else None
            elif isinstance(member, Nested) and member.over and not _done(path):
                index, by = _index(part), member.period
                path.append("{" + index if isinstance(index, str) else index)
                if by and block:
                    at = index % by if isinstance(index, int) else pattern
                    path.append(f"{PLACE}{at}")
                    strides = ((index, by, at),) if isinstance(index, str) else ()
                    place_in = index if isinstance(index, str) else index // by
                    indexed.append((every(member.over, by, at), place_in))
                    block = self.blocks.get(block.nested[str(at)].block)
                else:
                    indexed.append((member.over, index))
            else:
                left.append(part)
        assert member is not None
        return self.settled(Walked(member, path, indexed, left, strides), item, subject)

    def settled(self, walked: Walked, item: ast.Mapped, subject: Key) -> Walked | None:
        """What was found at a place; None after a report of its indices."""
        member, path, indexed, left, _ = walked
        taken = [name for _, name in indexed] + [_index(each) for each in left]
        names = [name for name in taken if isinstance(name, str)]
        if len(set(names)) < len(names):
            self.unknown(item.place, item.place.span, subject, "an index is used twice")
            return None
        if isinstance(member, Nested) and (left or (member.over and not _done(path))):
            reason = f"`{member.name}` is a stack: write `{member.name}[i]`"
            reason = "an index too many" if left else reason
            self.unknown(item.place, item.place.span, subject, reason)
            return None
        return walked

    def unknown(
        self,
        place: ast.Place,
        span: Span,
        subject: Key,
        reason: str,
        known: tuple[str, ...] = (),
        name: str = "",
    ) -> None:
        """Report a place that is none."""
        text = shown(place)
        self.found.append(UnknownPlace(span, name, known, text, subject.name, reason))

    def part(self, item: ast.Mapped, subject: Key, module: Module, at: int) -> Names | None:
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
        found = self.walk(next(_places(item.place)), item, subject, at)
        if found is None:
            return None
        member, path, indexed, _, strides = found
        inner = self.section(bound.section, self.modules[bound.file])
        if inner is None:
            return None
        if not isinstance(member, Nested) or member.block != inner.subject:
            reason = f"checkpoint `{wish.text}` is for `{inner.subject.name}`"
            self.unknown(item.place, item.place.span, subject, reason)
            return None
        indices = [name for _, name in indexed if isinstance(name, str)]
        prefixes = [self.foreign(name, indices, module) for name in item.names[:1]]
        lines = [within(line, path, indexed, prefixes[0], strides) for line in inner.lines]
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


PlacePart = ast.Name | ast.Ref | ast.Number


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


def _done(path: list[Index]) -> bool:
    """Whether the last name of a path has its index."""
    return bool(path) and (isinstance(path[-1], int) or path[-1].startswith(("{", PLACE)))


def _index(part: PlacePart) -> Index:
    return int(part.value) if isinstance(part, ast.Number) else getattr(part, "name", "")


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
