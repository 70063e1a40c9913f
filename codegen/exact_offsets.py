"""A layout of least size by integer program, for the few items where orders do not reach the bound.

MEMO (arXiv 2407.12117, section 4.2) with lifetimes as they are: minimise M such that A_i + S_i <= M
and, for items that are alive together, A_i + S_i <= A_j + L z_ij and A_j + S_j <= A_i +
L (1 - z_ij), where L is the size of a layout that is known. The search is bounded by nodes, not by
time, so the same items give the same layout.
"""

# pyright: basic
# (scipy says little of its types)

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fllmc.codegen.offsets import Item, height, live_bytes
from fllmc.ir.plan import ALIGNMENT

LARGEST: Final = 400
"""Pairs alive together, beyond which there is no search: it would hardly get anywhere."""
NODES: Final = 1000


def exact_offsets(items: Sequence[Item], known: tuple[list[int], int]) -> tuple[list[int], int]:
    """The smallest layout that the search finds, `known` if none is smaller than that."""
    count = len(items)
    pairs = [
        (i, j)
        for i in range(count)
        for j in range(i + 1, count)
        if items[i].meets(items[j]) and items[i].bytes and items[j].bytes
    ]
    if len(pairs) > LARGEST:
        return known
    sizes = [item.bytes // ALIGNMENT for item in items]
    starts = solved(sizes, pairs, live_bytes(items) // ALIGNMENT, known[1] // ALIGNMENT)
    if starts is None:
        return known
    found = [start * ALIGNMENT for start in starts]
    apart = all(
        found[i] + items[i].bytes <= found[j] or found[j] + items[j].bytes <= found[i]
        for i, j in pairs
    )
    total = height(items, found)
    return (found, total) if apart and total < known[1] else known


def solved(
    sizes: Sequence[int], pairs: Sequence[tuple[int, int]], least: int, known: int
) -> list[int] | None:
    """Starts for items of these sizes, in units of the alignment; None if none were found."""
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import lil_matrix

    count, size = len(sizes), len(sizes) + len(pairs) + 1
    rows = lil_matrix((count + 2 * len(pairs), size))
    top = np.zeros(count + 2 * len(pairs))
    for i, extent in enumerate(sizes):
        rows[i, i], rows[i, size - 1], top[i] = 1, -1, -extent
    for number, (i, j) in enumerate(pairs):
        at = count + 2 * number
        rows[at, i], rows[at, j], rows[at, count + number] = 1, -1, -known
        rows[at + 1, j], rows[at + 1, i], rows[at + 1, count + number] = 1, -1, known
        top[at], top[at + 1] = -sizes[i], known - sizes[j]
    low, high = np.zeros(size), np.ones(size)
    high[:count] = [known - extent for extent in sizes]
    low[-1], high[-1] = least, known
    cost = np.zeros(size)
    cost[-1] = 1
    whole = np.ones(size)
    found = milp(
        cost,
        integrality=whole,
        bounds=Bounds(low, high),  # pyright: ignore[reportArgumentType]
        constraints=LinearConstraint(rows.tocsr(), ub=top),  # pyright: ignore[reportArgumentType]
        options={"node_limit": NODES},
    )
    return None if found.x is None else [round(start) for start in found.x[:count]]
