"""Lines of `checkpoint` sections, typed: a kind of foreign tensor and the parameters in it."""

from __future__ import annotations

from typing import Protocol

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.semantics.layouts import Layout
from fllmc.frontend.semantics.typed import Key, Param
from fllmc.ir.span import Span

Index = str | int


class Term(Struct, frozen=True):
    """A number in a foreign name: an expression, and what its indices are called in the line."""

    expr: ast.Expr
    indices: tuple[tuple[str, str], ...]


class Spot(Struct, frozen=True):
    """A parameter, or a part of it: its path with indices, and the dims that are indexed or not.

    `name` is the path without indices. Of `indexed` dims the first `stacks` are those of stacks. Of
    a stack of a pattern of `period` layers it is in those that leave one of `layers` as remainder.
    """

    path: tuple[Index, ...]
    name: str
    indexed: tuple[tuple[str, Index], ...]
    stacks: int
    rest: tuple[str, ...]
    param: Param
    period: int = 0
    layers: tuple[int, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters that it speaks of: of a pattern one for each of its layers."""
        if not self.period:
            return (self.name,)
        at = next(n for n, part in enumerate(self.path) if not _plain(part))
        before, behind = path_name(self.path[:at]), path_name(self.path[at:])
        return tuple(f"{before}.{layer}.{behind}" for layer in self.layers)


class Line(Struct, frozen=True):
    """One kind of foreign tensor: its names, and the parameters in it."""

    span: Span
    spots: tuple[Spot, ...]
    names: tuple[tuple[str | Term, ...], ...]
    layout: Layout


class Within(Protocol):
    """Where a block lies: the path with indices, stacks' dims with theirs, layers of a pattern."""

    @property
    def path(self) -> tuple[Index, ...]:
        """The path."""
        ...

    @property
    def indexed(self) -> tuple[tuple[str, Index], ...]:
        """The stacks' dims."""
        ...

    @property
    def period(self) -> int:
        """The layers of a pattern; 0 without one."""
        ...

    @property
    def layers(self) -> tuple[int, ...]:
        """Those of it that are meant."""
        ...


class Names(Struct, frozen=True):
    """A section, written out. `config` are its pairs and those of the sections that it uses."""

    name: ast.Name
    subject: Key
    lines: tuple[Line, ...]
    ignored: tuple[str, ...]
    config: tuple[ast.ConfigDim | ast.ConfigValue, ...]


def shown(place: ast.Place) -> str:
    """A place as it is written."""
    text = ""
    for part in place.parts:
        match part:
            case ast.Ref(name=name):
                text += f"[{name}]"
            case ast.Number(value=value):
                text += f"[{value}]"
            case ast.Name(text=name):
                text += f".{name}"
            case ast.Alternatives(options=options):
                words = [o.text if isinstance(o, ast.Name) else str(o.value) for o in options]
                text += ".{" + ", ".join(words) + "}"
    return text.removeprefix(".")


def shown_path(spot: Spot) -> str:
    """The place of a spot, as it would be written with indices for all that has numbers."""
    text = ""
    for number, part in enumerate(spot.path):
        if isinstance(part, int):
            text += "[i]"
        elif part.startswith("{"):
            text += f"[{part[1:]}]"
        else:
            text += f".{part}" if number else part
    return text


def path_name(path: tuple[Index, ...]) -> str:
    """A path without its indices."""
    return ".".join(part for part in path if isinstance(part, str) and _plain(part))


def _plain(part: Index) -> bool:
    return isinstance(part, str) and part[0] != "{"


def within(line: Line, place: Within, prefix: tuple[str | Term, ...]) -> Line:
    """A line of a block, as one of the block that holds it at a place.

    Its indices give way to those outside.
    """
    path, indexed = place.path, place.indexed
    outer = {name for _, name in indexed if isinstance(name, str)}
    fresh: dict[str, str] = {}
    for _, name in line.spots[0].indexed:
        if isinstance(name, str):
            new = name
            while new in outer:
                new += "'"
            fresh[name] = new

    def renamed(name: Index) -> Index:
        return fresh.get(name, name) if isinstance(name, str) else name

    def segment(part: Index) -> Index:
        marked = isinstance(part, str) and part.startswith("{")
        return "{" + str(renamed(part[1:])) if marked and isinstance(part, str) else part

    spots = tuple(
        structs.replace(
            spot,
            path=(*path, *map(segment, spot.path)),
            name=f"{path_name(path)}.{spot.name}",
            period=place.period or spot.period,
            layers=place.layers or spot.layers,
            indexed=(*indexed, *((dim, renamed(name)) for dim, name in spot.indexed)),
            stacks=spot.stacks + len(indexed),
        )
        for spot in line.spots
    )

    def inner(part: str | Term) -> str | Term:
        if isinstance(part, str):
            return part
        return structs.replace(
            part, indices=tuple((old, str(renamed(now))) for old, now in part.indices)
        )

    dot = (".",) if prefix else ()
    names = tuple((*prefix, *dot, *map(inner, name)) for name in line.names)
    return structs.replace(line, spots=spots, names=names)
