"""Tile sizes of fused groups on a CPU."""

from __future__ import annotations

from typing import Final

from fllmc.ir.ops import Bucketed, Fused
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes

TILE_ELEMENTS: Final = 1 << 16
"""Elements of the widest value in a tile. 64 Ki floats are 256 KiB: a group's few live tiles stay
in a core's second-level cache, and one call's work (about 10 us) hides the cost of making it."""


def rows_of(op: Op) -> tuple[str, ...]:
    """The rows of a group that is one kernel: those of a bucket are all its elements."""
    assert isinstance(op.attrs, Bucketed | Fused)
    return op.attrs.rows if isinstance(op.attrs, Fused) else (op.attrs.bucket,)


def group_rows(function: Function, rows: tuple[str, ...], sizes: Sizes) -> int:
    """The number of rows that one rank works through."""
    for kind in function.types:
        if kind.names[: len(rows)] == rows:
            lead = kind.placed(kind.dims[: len(rows)])
            return sizes.local_elements(lead)
    return 1


def tile_rows(function: Function, rows: tuple[str, ...], sizes: Sizes) -> int:
    """Rows in a tile: all of them if they are few, else even parts of about TILE_ELEMENTS."""
    count = group_rows(function, rows, sizes)
    wide = [kind for kind in function.types if kind.names[: len(rows)] == rows]
    widest = max((sizes.local_elements(kind.without(rows)) for kind in wide), default=1)
    fit = max(1, TILE_ELEMENTS // max(widest, 1))
    if count <= 2 * fit:
        return count
    parts = -(-count // fit)
    return -(-count // parts)
