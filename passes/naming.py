"""New names beside those that are there."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

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


def unique(wish: str, taken: Container[str], separator: str = ".") -> str:
    """The wished name, with a number behind it from 2 if it is taken."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}{separator}{count}"
    return name
