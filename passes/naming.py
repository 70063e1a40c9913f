"""New names beside those that are there."""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from typing import Final, cast

from fllmc.ir.coded import cuts_of, uncut
from fllmc.ir.types import Dim

PART: Final = ".part"
"""Ends the name of a dim within a chunk: `seq.part` lives where `seq` does."""


CHUNKS: Final = "chunks"
"""Begins the name of a dim of chunks, whose scans cut one pass over a sequence into parts."""


def parts_of(dim: str, dims: Container[str]) -> tuple[str, ...]:
    """The names, among these, of what a dim is cut into."""
    found: list[str] = []
    while (name := unique(dim + PART, found)) in dims:
        found.append(name)
    return tuple(found)


def stand_ins(dim: str, dims: Collection[str]) -> tuple[str, ...]:
    """The names, among these, of dims that lie where a dim does: what it is cut into, and codes."""
    return (*parts_of(dim, dims), *cuts_of(dim, dims))


def is_stand_in(dim: str) -> bool:
    """Whether the dim lies where another one does, so that no directive names it."""
    return PART in dim or uncut(dim) != dim


def renamed(held: object, dims: Mapping[str, str]) -> object:
    """An attribute of an op, with dims renamed wherever they stand in it."""
    if isinstance(held, str):
        return dims.get(held, held)
    if isinstance(held, Dim):
        return Dim(dims.get(held.name, held.name), held.axes)
    if isinstance(held, tuple):
        return tuple(renamed(each, dims) for each in cast("tuple[object, ...]", held))
    return held


def unique(wish: str, taken: Container[str], separator: str = ".") -> str:
    """The wished name, with a number behind it from 2 if it is taken."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}{separator}{count}"
    return name
