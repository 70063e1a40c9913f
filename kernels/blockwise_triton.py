"""The blockwise kernels in Triton: each code is read once, and what it stands for written once.

Arguments are those of `fllmc.kernels.blockwise`, all contiguous and on one device. A block is a
column, so neighbours in memory belong to neighbouring blocks, and share a scale only where `inner`
is 1; scales are read through the cache.
"""

# pyright: basic, reportGeneralTypeIssues=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from fllmc.ir.codebooks import MIDPOINTS, MOST, NF4

# The decorator makes of a function something that is started on a grid, which types do not tell.
jit: Any = triton.jit

TILE = 1024
"""Codes of a program; a power of two."""


@jit
def _dequantize(codes, scales, levels, out, count, packed, inner, BITS: tl.constexpr,
                INNER_IS_ONE: tl.constexpr, TILE: tl.constexpr):  # fmt: skip
    first = tl.program_id(0).to(tl.int64) * TILE
    at = first + tl.arange(0, TILE)
    held = at < count
    column = at % inner
    row = at // inner
    block = row // packed
    scale = tl.load(scales + block * inner + column, mask=held, other=0.0)
    code = tl.load(codes + at, mask=held, other=0)
    kind = out.dtype.element_ty
    if BITS == 8:
        tl.store(out + at, (code.to(tl.float32) * scale).to(kind), mask=held)
    else:
        pair = code.to(tl.int32)
        high = (tl.load(levels + (pair >> 4)) * scale).to(kind)
        low = (tl.load(levels + (pair & 15)) * scale).to(kind)
        if INNER_IS_ONE:  # the two lie side by side
            both = 2 * first + tl.arange(0, 2 * TILE)
            tl.store(out + both, tl.interleave(high, low), mask=both < 2 * count)
        else:
            place = out + 2 * row * inner + column
            tl.store(place, high, mask=held)
            tl.store(place + inner, low, mask=held)


@jit
def _quantize(x, codes, scales, midpoints, count, inner, BLOCK: tl.constexpr, BITS: tl.constexpr,
              MOST: tl.constexpr, COLUMNS: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    held = at < count
    begin = (at // inner) * BLOCK * inner + at % inner
    largest = tl.zeros((COLUMNS,), tl.float32)
    for position in range(BLOCK):
        value = tl.load(x + begin + position * inner, mask=held, other=0.0).to(tl.float32)
        largest = tl.maximum(largest, tl.abs(value))
    scale = tl.div_rn(largest, MOST * 1.0) if BITS == 8 else largest
    tl.store(scales + at, scale, mask=held)
    scale = tl.where(scale == 0.0, 1.0, scale)
    start = (at // inner) * (BLOCK * BITS // 8) * inner + at % inner
    for byte in range(BLOCK * BITS // 8):
        packed = tl.zeros((COLUMNS,), tl.int32)
        for part in tl.static_range(8 // BITS):
            place = begin + (byte * (8 // BITS) + part) * inner
            value = tl.load(x + place, mask=held, other=0.0).to(tl.float32)
            share = tl.div_rn(value, scale)
            if BITS == 8:  # to the nearest, of two the even one
                down = tl.floor(share)
                rest = share - down
                whole = down.to(tl.int32)
                up = (rest > 0.5) | ((rest == 0.5) & (whole % 2 != 0))
                packed = tl.minimum(tl.maximum(whole + up.to(tl.int32), -MOST), MOST)
            else:
                code = tl.zeros((COLUMNS,), tl.int32)
                for step in tl.static_range(15):
                    code += (share > tl.load(midpoints + step)).to(tl.int32)
                packed = packed * 16 + code
        tl.store(codes + start + byte * inner, packed.to(codes.dtype.element_ty), mask=held)


def dequantize(codes: Tensor, scales: Tensor, bits: int, out: Tensor) -> None:
    """As `fllmc.kernels.blockwise.dequantize`, with f32 arithmetic."""
    _, packed, inner = codes.shape
    levels = torch.tensor(NF4, device=out.device)
    grid = (triton.cdiv(codes.numel(), TILE),)
    given = codes, scales, levels, out, codes.numel(), packed, inner
    _dequantize[grid](*given, BITS=bits, INNER_IS_ONE=inner == 1, TILE=TILE)


def quantize(x: Tensor, bits: int, out: tuple[Tensor, Tensor]) -> None:
    """As `fllmc.kernels.blockwise.quantize`, with f32 arithmetic."""
    (codes, scales), (_, block, inner) = out, x.shape
    midpoints = torch.tensor(MIDPOINTS, device=x.device)
    columns = 128
    grid = (triton.cdiv(scales.numel(), columns),)
    given = x, codes, scales, midpoints, scales.numel(), inner
    _quantize[grid](*given, BLOCK=block, BITS=bits, MOST=MOST, COLUMNS=columns)
