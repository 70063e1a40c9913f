"""Parts of a dim dealt out to chunks, and put together again, in JAX."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp

from fllmc.codegen.jax_site import Site, Value
from fllmc.ir import ops

_jnp: Any = jnp


def chunk(attrs: ops.Chunk, site: Site, x: Value) -> Value:
    """Chunk i takes every position that leaves i."""
    at, count = site.operands[0].names.index(attrs.dim), site.size(attrs.over)
    parts = [_jnp.take(x, _jnp.arange(i, x.shape[at], count), axis=at) for i in range(count)]
    return _jnp.stack(parts)


def unchunk(attrs: ops.Unchunk, site: Site, x: Value) -> Value:
    """The inverse of chunk."""
    at = site.results[0].names.index(attrs.dim)
    together = _jnp.stack(list(x), axis=at + 1)
    return together.reshape((*x.shape[1 : at + 1], -1, *x.shape[at + 2 :]))
