"""Blockwise codes written out by hand, one block and one element at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fllmc.ir.codebooks import NF4


class Coded(NamedTuple):
    """Codes, one a value, scales, and the value that they stand for."""

    codes: Any
    scales: Any
    value: Any


def coded(x: Any, at: int, block: int, bits: int) -> Coded:
    """What `x` is rounded to in blocks along the dim at `at`."""
    codes, value = np.zeros(x.shape, np.int64), np.zeros(x.shape)
    shape = list(x.shape)
    shape[at] //= block
    scales = np.zeros(shape)
    for place in np.ndindex(*shape):
        run = list(place)
        run[at] = slice(place[at] * block, (place[at] + 1) * block)
        where = tuple(run)
        largest = max(abs(number) for number in x[where])
        scale = largest / (127 if bits == 8 else 1)
        scales[place] = scale
        for number, element in enumerate(x[where]):
            share = element / scale if scale else 0.0
            if bits == 8:
                code, level = round(share), round(share)
            else:
                code = min(range(16), key=lambda code, share=share: abs(NF4[code] - share))
                level = NF4[code]
            codes[where][number], value[where][number] = code, level * scale
    return Coded(codes, scales, value)


def packed(codes: Any, at: int) -> Any:
    """Two codes of four bits in a byte, the first in its upper half."""
    even, odd = (np.take(codes, range(start, codes.shape[at], 2), axis=at) for start in (0, 1))
    return even * 16 + odd
