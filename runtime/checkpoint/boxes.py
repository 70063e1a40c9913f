"""Boxes of elements within a tensor: where two meet, and whether some cover the whole."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from math import prod
from typing import TypeAlias

import msgspec
import numpy as np

Shape: TypeAlias = tuple[int, ...]


class Box(msgspec.Struct, frozen=True):
    """The elements from `offsets` on, `shape` many in each dim."""

    offsets: Shape
    shape: Shape

    @property
    def ends(self) -> Shape:
        """The places just behind the last element."""
        return tuple(o + n for o, n in zip(self.offsets, self.shape, strict=True))

    @property
    def size(self) -> int:
        """The number of elements."""
        return prod(self.shape)

    def meet(self, other: Box) -> Box | None:
        """The elements in both, or None."""
        low = tuple(map(max, self.offsets, other.offsets))
        shape = tuple(e - o for o, e in zip(low, map(min, self.ends, other.ends), strict=True))
        return Box(low, shape) if all(n > 0 for n in shape) else None

    def slices_in(self, outer: Box) -> tuple[slice, ...]:
        """Where this box lies within a tensor that holds `outer`."""
        starts = [o - b for o, b in zip(self.offsets, outer.offsets, strict=True)]
        return tuple(slice(s, s + n) for s, n in zip(starts, self.shape, strict=True))


def whole(shape: Shape) -> Box:
    """All elements of a tensor."""
    return Box((0,) * len(shape), shape)


def box_of(shape: Shape, slices: Sequence[slice] | None) -> Box:
    """The box that slices of step 1 cut out of a tensor; None is all of it."""
    if slices is None:
        return whole(shape)
    ranges = [s.indices(n) for s, n in zip(slices, shape, strict=True)]
    if any(step != 1 for _, _, step in ranges):
        raise ValueError("a box has no steps")
    sizes = tuple(max(0, stop - start) for start, stop, _ in ranges)
    return Box(tuple(start for start, _, _ in ranges), sizes)


def cover_fault(shape: Shape, boxes: Sequence[Box]) -> str | None:
    """What is wrong with `boxes` as a partition of a tensor, in words, or None.

    Cuts the tensor along all sides of all boxes and counts how often each cell is covered: for
    shards on a mesh that is one cell a box.
    """
    for box in boxes:
        inside = len(box.shape) == len(box.offsets) == len(shape) and all(
            o >= 0 and n >= 0 and o + n <= size
            for o, n, size in zip(box.offsets, box.shape, shape, strict=True)
        )
        if not inside:
            return f"reach outside its shape: {list(box.shape)} at {list(box.offsets)}"
    held = sum(box.size for box in boxes)
    if held != prod(shape):
        return f"hold {held} elements, not {prod(shape)}"
    # Equally many elements cover the whole if and only if none is held twice.
    cuts = [
        sorted({0, *(e for box in boxes for e in (box.offsets[d], box.ends[d]))})
        for d in range(len(shape))
    ]
    covered = np.zeros([len(c) for c in cuts], dtype=np.int32)
    for box in (b for b in boxes if b.size):
        low = [bisect_left(c, o) for c, o in zip(cuts, box.offsets, strict=True)]
        high = [bisect_left(c, e) for c, e in zip(cuts, box.ends, strict=True)]
        cell = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        covered[cell] += 1
    return "overlap and leave a gap" if covered.max(initial=0) > 1 else None
