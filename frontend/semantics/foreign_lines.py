"""Lines of `checkpoint` sections, typed: a kind of foreign tensor and the parameters in it."""

from __future__ import annotations

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.semantics.layouts import Layout
from fllmc.frontend.semantics.typed import Key, Param
from fllmc.ir.span import Span

Index = str | int

PLACE = "#"
"""Stands in a path before the place in a pattern that the layers have."""


class Term(Struct, frozen=True):
    """A number in a foreign name: an expression, and what its indices are called in the line."""

    expr: ast.Expr
    indices: tuple[tuple[str, str], ...]


class Spot(Struct, frozen=True):
    """A parameter, or a part of it: its path with indices, and the dims that are indexed or not.

    `name` is the path without indices. Of `indexed` dims the first `stacks` are those of stacks.
    """

    path: tuple[Index, ...]
    name: str
    indexed: tuple[tuple[str, Index], ...]
    stacks: int
    rest: tuple[str, ...]
    param: Param


class Line(Struct, frozen=True):
    """One kind of foreign tensor: its names, and the parameters in it.

    `strides` are indices that count the layers of one place in a pattern, each with the period and
    the number of the first such layer.
    """

    span: Span
    spots: tuple[Spot, ...]
    names: tuple[tuple[str | Term, ...], ...]
    layout: Layout
    strides: tuple[tuple[str, int, int], ...] = ()

    def numbered(self, index: str) -> tuple[int, int]:
        """What an index is multiplied by, and what is added, to give the number of a layer."""
        return next(((by, first) for name, by, first in self.strides if name == index), (1, 0))


class Names(Struct, frozen=True):
    """A section, written out. `config` are its pairs and those of the sections that it uses."""

    name: ast.Name
    subject: Key
    lines: tuple[Line, ...]
    ignored: tuple[str, ...]
    config: tuple[ast.ConfigDim | ast.ConfigValue, ...]


def every(over: str, period: int, first: int) -> str:
    """The layers of one place in a pattern, as a dim."""
    return f"{over}%{period}={first}"


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
        elif part.startswith(PLACE):
            continue
        elif part.startswith("{"):
            text += f"[{part[1:]}]"
        else:
            text += f".{part}" if number else part
    return text


def within(
    line: Line,
    path: list[Index],
    indexed: list[tuple[str, Index]],
    prefix: tuple[str | Term, ...],
    strides: tuple[tuple[str, int, int], ...] = (),
) -> Line:
    """A line of a block, as one of the block that holds it; its indices give way to others."""
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
            name=".".join([*(p for p in path if isinstance(p, str) and p[0] != "{"), spot.name]),
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
    inside = ((str(renamed(name)), by, first) for name, by, first in line.strides)
    return structs.replace(line, spots=spots, names=names, strides=(*strides, *inside))
