"""Parameters that a checkpoint holds as codes and scales: which there are, and what they stand for.

`body.0.wq` is held as `body.0.wq.codes` and `body.0.wq.scales`. Their shapes and dtypes say all.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

import torch
from torch import Tensor

from fllmc.ir.codebooks import CODE_DTYPES
from fllmc.ir.coded import CODES, SCALES
from fllmc.kernels import torch_ops as kernels
from fllmc.runtime.checkpoint.boxes import Shape

BITS: Final = {dtype: bits for bits, dtype in CODE_DTYPES.items()}
Kind = tuple[str, Shape]


def held_as_codes(kinds: Mapping[str, Kind]) -> dict[str, Shape]:
    """By name, the shapes of the parameters that are held so among tensors of these kinds."""
    found: dict[str, Shape] = {}
    for name, (dtype, shape) in kinds.items():
        base = name.removesuffix(f".{CODES}")
        scales = kinds.get(f"{base}.{SCALES}")
        if base != name and dtype in BITS and scales:
            at = cut_dim(shape, scales[1])
            whole = (n * 8 // BITS[dtype] if d == at else n for d, n in enumerate(shape))
            found[base] = tuple(whole)
    return found


def names_of(base: str) -> tuple[str, str]:
    """The names under which codes and scales lie."""
    return f"{base}.{CODES}", f"{base}.{SCALES}"


def cut_dim(codes: Shape, scales: Shape) -> int:
    """Where codes and scales differ in size: blocks lie along this dim."""
    return next(d for d, (n, m) in enumerate(zip(codes, scales, strict=True)) if n != m)


def dequantized(codes: Tensor, scales: Tensor) -> Tensor:
    """What whole codes and scales stand for, in f32."""
    bits = 8 if codes.dtype == torch.int8 else 4
    at, shape = cut_dim(tuple(codes.shape), tuple(scales.shape)), list(codes.shape)
    blocks, packed = prod(scales.shape[: at + 1]), shape[at] // scales.shape[at]
    held = codes.contiguous().view(blocks, packed, -1)
    out = scales.new_empty((blocks, packed * 8 // bits, held.shape[2]))
    kernels.dequantize(held, scales.contiguous().view(blocks, -1), bits, out=out)
    shape[at] = shape[at] * 8 // bits
    return out.view(shape)
