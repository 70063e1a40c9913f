"""Lifetimes to offsets.

Items are placed one after another into the smallest hole that takes them, in several orders: by
size (the "greedy by size" of Pisarchyk and Lee 2020), by size times lifetime, by lifetime, by start
and by end. Each order is improved by placing first what reached the top. The best layout is taken;
beside it stands the largest number of bytes live at once, which no layout can go below. Where they
still differ, `codegen/exact_offsets.py` looks further.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from fllmc.ir.plan import ALIGNMENT


class Item(msgspec.Struct, frozen=True):
    """Bytes that must be at hand from op `start` through op `stop`."""

    start: int
    stop: int
    bytes: int

    def meets(self, other: Item) -> bool:
        """Whether there is a moment at which both must be at hand."""
        return other.start <= self.stop and self.start <= other.stop


ORDERS: Final[tuple[Callable[[Item], tuple[int, ...]], ...]] = (
    lambda item: (-item.bytes, item.start),
    lambda item: (-item.bytes * (item.stop - item.start + 1), item.start),
    lambda item: (item.start - item.stop, -item.bytes),
    lambda item: (item.start, -item.bytes),
    lambda item: (-item.stop, -item.bytes),
)
"""The orders in which items are placed; of equally good layouts the first order's is taken."""

ROUNDS: Final = 100
"""How often an order is improved at most."""

TOLERATED: Final = 0.002
"""The share above the bound for which there is no further search."""


def aligned(count: int) -> int:
    """Rounded up to the alignment."""
    return -(-count // ALIGNMENT) * ALIGNMENT


def offsets(items: Sequence[Item]) -> tuple[list[int], int]:
    """An offset for each item such that none overlaps another alive with it, and the total."""
    least = live_bytes(items)
    best: tuple[list[int], int] | None = None
    for key in ORDERS:
        order = sorted(range(len(items)), key=lambda i: (*key(items[i]), i))
        found = improved(items, order, least)
        if best is None or found[1] < best[1]:
            best = found
        if best[1] == least:
            break
    assert best is not None
    if best[1] - least > least * TOLERATED:
        from fllmc.codegen.exact_offsets import exact_offsets  # its solver is slow to import

        return exact_offsets(items, best)
    return best


def improved(items: Sequence[Item], order: list[int], least: int) -> tuple[list[int], int]:
    """The best of the layouts that come of placing first, again and again, what reached the top."""
    seen: set[tuple[int, ...]] = set()
    starts, total = best = placed(items, order)
    while best[1] > least and len(seen) < ROUNDS and tuple(order) not in seen:
        seen.add(tuple(order))
        highest = {i for i in order if starts[i] + items[i].bytes == total}
        order = [i for i in order if i in highest] + [i for i in order if i not in highest]
        starts, total = placed(items, order)
        if total < best[1]:
            best = starts, total
    return best


def placed(items: Sequence[Item], order: Sequence[int]) -> tuple[list[int], int]:
    """Each item in turn in the smallest hole that takes it, and the total."""
    starts = [0] * len(items)
    done: list[int] = []
    for i in order:
        near = sorted(
            (starts[j], starts[j] + items[j].bytes) for j in done if items[j].meets(items[i])
        )
        starts[i] = best_gap(near, items[i].bytes)
        done.append(i)
    return starts, height(items, starts)


def height(items: Sequence[Item], starts: Sequence[int]) -> int:
    """Where the highest item ends."""
    return max((start + item.bytes for item, start in zip(items, starts, strict=True)), default=0)


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
