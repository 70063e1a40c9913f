"""Values in 8 or 4 bits with a scale for each block: rounding to codes, and back.

Tensors are [blocks, block, inner]: a block is a column of the middle dim, so blocks along any dim
are such views. Codes of 8 bits are i8 of the same shape; of 4 bits they are u8 [blocks, block / 2,
inner], two in a byte, the first in its upper half. Scales are f32 [blocks, inner].
See `fllmc.ir.codebooks`. On a GPU they are done by `blockwise_triton.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from fllmc.ir.codebooks import MIDPOINTS, MOST, NF4

_CPU_TILE = 1 << 16  # elements whose temporaries stay in cache
_DEVICE_TILE = 1 << 22


def quantize(x: Tensor, bits: int, out: tuple[Tensor, Tensor]) -> None:
    """Codes and scales of x; of two levels that are equally near the lower, or the even one."""
    if _by_triton(x, *out):
        from fllmc.kernels import blockwise_triton

        blockwise_triton.quantize(x, bits, out)
        return
    codes, scales = out
    for rows in _tiles(x):
        part = x[rows].to(_exact(x)).contiguous()
        torch.amax(part.abs(), dim=1, out=(largest := part.new_empty(scales[rows].shape)))
        scale = scales[rows].copy_(largest / MOST if bits == 8 else largest).to(part.dtype)
        part = part / torch.where(scale == 0, 1.0, scale)[:, None]
        if bits == 8:
            codes[rows] = part.round_().clamp_(-MOST, MOST)
        else:
            found = torch.bucketize(part, part.new_tensor(MIDPOINTS), out_int32=True)
            codes[rows] = found[:, 0::2] * 16 + found[:, 1::2]


def dequantize(codes: Tensor, scales: Tensor, bits: int, out: Tensor) -> None:
    """The level of each code times its block's scale, rounded once to the dtype of out."""
    if _by_triton(out, codes, scales):
        from fllmc.kernels import blockwise_triton

        blockwise_triton.dequantize(codes, scales, bits, out)
        return
    for rows in _tiles(out):
        scale, held = scales[rows].to(_exact(out))[:, None], codes[rows]
        if bits == 8:
            out[rows] = held * scale
        else:
            levels = scale.new_tensor(NF4)
            for place, code in enumerate((held >> 4, held & 15)):
                out[rows, place::2] = levels[code.int()] * scale


def _by_triton(value: Tensor, *parts: Tensor) -> bool:
    """Whether the kernels in Triton take these: contiguous on a GPU, and f32 is wide enough."""
    if value.device.type != "cuda" or value.dtype == torch.float64 or not _has_triton():
        return False
    return all(each.is_contiguous() for each in (value, *parts))


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _exact(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


def _tiles(x: Tensor) -> Iterator[slice]:
    """Runs of blocks of about as many elements as are worth working on at once."""
    tile = _CPU_TILE if x.device.type == "cpu" else _DEVICE_TILE
    count = max(1, tile // (x.shape[1] * x.shape[2]))
    return (slice(first, first + count) for first in range(0, x.shape[0], count))
