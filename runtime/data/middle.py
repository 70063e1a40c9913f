"""Fill in the middle (Bavarian et al. 2022): a document told out of order, between marks.

A document is cut twice at random into prefix, middle and suffix, and told as PSM (prefix mark,
prefix, suffix mark, suffix, middle mark, middle) or as SPM (prefix mark, suffix mark, suffix,
middle mark, prefix, middle). It happens to each document's stretch within a sample, whose last
three tokens make room for the marks, so that samples keep their length.
"""

from __future__ import annotations

from itertools import pairwise

import msgspec
import numpy as np

from fllmc.ir import philox
from fllmc.runtime.data.documents import Places
from fllmc.runtime.data.rows import Row

MARKS = 3
SHORTEST = 2 * MARKS


class Middles(msgspec.Struct, frozen=True):
    """How often documents are rearranged, how often as SPM, and the tokens that are the marks."""

    rate: float
    spm: float
    prefix: int
    suffix: int
    middle: int
    seed: int


def rearranged(row: Row, middles: Middles | None, sample: int) -> Row:
    """The row with some of its documents rearranged; a pure function of the sample's number."""
    if middles is None or middles.rate <= 0:
        return row
    cuts = np.flatnonzero(np.diff(row.belongs)) + 1
    edges = [0, *cuts.tolist(), len(row.tokens)]
    key = philox.stream_key("middle", middles.seed, sample)
    draws = philox.uniform64(key, 0, 4 * (len(edges) - 1)).reshape(-1, 4)
    order = np.arange(len(row.tokens))
    for (first, stop), drawn in zip(pairwise(edges), draws, strict=True):
        if stop - first >= SHORTEST and drawn[0] < middles.rate:
            order[first:stop] = _order(stop - first, drawn[1] < middles.spm, drawn[2:], first)
    marks = np.array([middles.prefix, middles.suffix, middles.middle], np.int64)
    is_mark = order < 0
    taken = np.where(is_mark, 0, order)
    return msgspec.structs.replace(
        row,
        tokens=np.where(is_mark, marks[-order * is_mark - 1], row.tokens[taken]),
        counts=np.where(is_mark, np.float32(1), row.counts[taken]),
        columns={
            name: np.where(is_mark, np.float32(1), column[taken])
            for name, column in row.columns.items()
        },
    )


def _order(length: int, spm: bool, drawn: np.ndarray, first: int) -> Places:
    """Which token stands where: places from `first` on, or -1, -2, -3 for the three marks."""
    kept = length - MARKS
    low, high = sorted(int(each * (kept + 1)) for each in drawn)
    prefix, middle, suffix = (
        np.arange(a, b, dtype=np.int64) + first for a, b in ((0, low), (low, high), (high, kept))
    )
    pre, suf, mid = (np.array([-mark], np.int64) for mark in (1, 2, 3))
    if spm:
        return np.concatenate([pre, suf, suffix, mid, prefix, middle])
    return np.concatenate([pre, prefix, suf, suffix, mid, middle])
