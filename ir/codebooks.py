"""What the codes of quantised values stand for, in multiples of their block's scale.

Four bits are positions in NF4 (Dettmers et al. 2023, appendix E): the quantiles of a standard
normal distribution, with an exact zero, divided by the largest. Eight bits are whole numbers from
-127 to 127. The scale of a block is its largest magnitude, at eight bits divided by 127.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Final

NF4: Final[tuple[float, ...]] = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)

MIDPOINTS: Final[tuple[float, ...]] = tuple((low + high) / 2 for low, high in pairwise(NF4))
"""A value belongs to the position of how many of these are below it."""

MOST: Final = 127
"""The largest code of eight bits; -128 is not used, so that codes are symmetric."""

CODE_DTYPES: Final = {4: "u8", 8: "i8"}
"""How codes are stored: two in a byte, the first in its upper half, or one."""


def most_moved(bits: int) -> float:
    """By how much rounding may change an element, as a share of the largest of its block."""
    gaps = [high - low for low, high in pairwise(NF4)] if bits == 4 else [1 / MOST]
    return max(gaps) / 2
