"""The blockwise ops in JAX: levels are found among all by their distance, not by midpoints."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fllmc.codegen.jax_site import Site, Value
from fllmc.ir import ops
from fllmc.ir.codebooks import NF4

_jnp: Any = jnp


def quantize(attrs: ops.Quantize, site: Site, x: Value) -> tuple[Value, Value]:
    """Codes and scales."""
    at, count = site.operands[0].names.index(attrs.dim), site.size(attrs.blocks)
    first = _jnp.moveaxis(x, at, 0)
    blocks = first.reshape((count, -1, *first.shape[1:]))
    largest = _jnp.max(_jnp.abs(blocks), axis=1)
    scales = largest / 127 if attrs.bits == 8 else largest
    scaled = blocks / _jnp.where(scales == 0, 1, scales)[:, None]
    if attrs.bits == 8:
        codes = _jnp.round(scaled)
    else:
        away = _jnp.abs(scaled[..., None] - _jnp.asarray(NF4, scaled.dtype))
        codes = _jnp.argmin(away, axis=-1)
        codes = codes[:, ::2] * 16 + codes[:, 1::2]
    flat = codes.reshape((-1, *codes.shape[2:]))
    found = (_jnp.moveaxis(each, 0, at) for each in (flat, scales))
    held = [x.astype(site.dtype_of(kind)) for x, kind in zip(found, site.results, strict=True)]
    return held[0], held[1]


def dequantize(attrs: ops.Dequantize, site: Site, codes: Value, scales: Value) -> Value:
    """Levels times scales, each scale repeated along its block."""
    at = site.operands[0].names.index(attrs.codes)
    block = site.size(attrs.dim) // site.size(attrs.blocks)
    spread = _jnp.repeat(scales, block, axis=at).astype(site.dtype_of(site.results[0]))
    if attrs.bits == 8:
        return codes.astype(spread.dtype) * spread
    pairs = _jnp.stack(_jnp.divmod(codes.astype("int32"), 16), axis=at + 1)
    shape = (*codes.shape[:at], -1, *codes.shape[at + 1 :])
    return _jnp.asarray(NF4, spread.dtype)[pairs.reshape(shape)] * spread
