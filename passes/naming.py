"""New names beside those that are there."""

from __future__ import annotations

from collections.abc import Container
from typing import Final

PART: Final = ".part"
"""Ends the name of a dim within a chunk: `seq.part` lives where `seq` does."""


def unique(wish: str, taken: Container[str], separator: str = ".") -> str:
    """The wished name, with a number behind it from 2 if it is taken."""
    name, count = wish, 1
    while name in taken:
        count += 1
        name = f"{wish}{separator}{count}"
    return name
