"""What the blockwise ops mean, in plain numpy; scales are not rounded to f32."""

from __future__ import annotations

import numpy as np

from fllmc.ir import ops
from fllmc.ir.codebooks import MIDPOINTS, MOST, NF4
from fllmc.ir.evaluate_parts import Array, Here


def blocks_of(x: Array, at: int, count: int) -> Array:
    """The array with the dim at `at` last and cut into blocks: [..., count, block]."""
    last = np.moveaxis(x, at, -1)
    return last.reshape((*last.shape[:-1], count, last.shape[-1] // count))


def put_back(x: Array, at: int) -> Array:
    """The inverse: the two last dims as one, at `at`."""
    return np.moveaxis(x.reshape((*x.shape[:-2], x.shape[-2] * x.shape[-1])), -1, at)


def quantize(attrs: ops.Quantize, here: Here, x: Array) -> tuple[Array, Array]:
    """Codes and scales; a block of zeros has scale zero and the codes of zero."""
    at = here.operands[0].names.index(attrs.dim)
    blocks = blocks_of(x, at, here.extent(here.results[1].dim(attrs.blocks)))
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / (MOST if attrs.bits == 8 else 1)
    scaled = blocks / np.where(scales == 0.0, 1.0, scales)
    codes = np.rint(scaled) if attrs.bits == 8 else np.searchsorted(MIDPOINTS, scaled)
    codes = codes.astype(np.int64)
    packed = codes if attrs.bits == 8 else codes[..., 0::2] * 16 + codes[..., 1::2]
    return put_back(packed, at), np.moveaxis(scales[..., 0], -1, at)


def dequantize(attrs: ops.Dequantize, here: Here, codes: Array, scales: Array) -> Array:
    """Levels times scales."""
    at = here.operands[0].names.index(attrs.codes)
    blocks = blocks_of(codes, at, scales.shape[at])
    if attrs.bits == 4:
        pairs = np.stack((blocks // 16, blocks % 16), axis=-1)
        blocks = np.asarray(NF4)[pairs.reshape((*blocks.shape[:-1], -1))]
    return put_back(blocks * np.moveaxis(scales, at, -1)[..., None], at)
