"""Lifetimes to offsets.

Greedy best fit over lifetimes, largest item first (the "greedy by size" of Pisarchyk and Lee 2020),
with the largest number of bytes live at once beside it, which no layout can go below.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.plan import ALIGNMENT


class Item(msgspec.Struct, frozen=True):
    """Bytes that must be at hand from op `start` through op `stop`."""

    start: int
    stop: int
    bytes: int


def aligned(count: int) -> int:
    """Rounded up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def offsets(items: Sequence[Item]) -> tuple[list[int], int]:
    """An offset for each item such that none overlaps another alive with it, and the total."""
    placed: list[tuple[Item, int]] = []
    result = [0] * len(items)
    order = sorted(range(len(items)), key=lambda i: (-items[i].bytes, items[i].start, i))
    for i in order:
        item = items[i]
        near = sorted(
            (offset, offset + other.bytes)
            for other, offset in placed
            if other.start <= item.stop and item.start <= other.stop
        )
        result[i] = best_gap(near, item.bytes)
        placed.append((item, result[i]))
    total = max((offset + item.bytes for item, offset in placed), default=0)
    return result, total


def best_gap(taken: Sequence[tuple[int, int]], size: int) -> int:
    """The start of the smallest hole between sorted stretches that takes `size`, or the end."""
    best: tuple[int, int] | None = None
    end = 0
    for start, stop in taken:
        if start - end >= size and (best is None or start - end < best[0]):
            best = (start - end, end)
        end = max(end, stop)
    return end if best is None else best[1]


def live_bytes(items: Sequence[Item]) -> int:
    """The most bytes alive at once."""
    events = sorted(
        [(item.start, 1, item.bytes) for item in items]
        + [(item.stop + 1, 0, -item.bytes) for item in items]
    )
    now = most = 0
    for _, _, change in events:
        now += change
        most = max(most, now)
    return most
