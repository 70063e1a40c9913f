"""Ops that index along a dim, in JAX, and what records a value for a state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fllmc.codegen.jax_site import Site, Value, aligned
from fllmc.ir import ops

_jnp: Any = jnp
_jax: Any = jax


def one_hot(index: Value, size: int, dtype: Any) -> Value:
    """All zeros for an index outside of the dim, as take, pick and spread want."""
    return _jax.nn.one_hot(index, size, dtype=dtype)


def take(attrs: ops.Take, site: Site, table: Value, index: Value) -> Value:
    """Rows of a table; zeros for an index outside of it."""
    rows = _jnp.moveaxis(table, site.operands[0].names.index(attrs.dim), 0)
    held = (index >= 0) & (index < rows.shape[0])
    found = _jnp.take(rows, index, axis=0, mode="clip")
    return _jnp.where(held.reshape(held.shape + (1,) * (rows.ndim - 1)), found, 0)


def reindex(attrs: ops.Reindex, site: Site, index: Value) -> Value:
    """Counted from the first of a stretch."""
    return index - attrs.first


def put(attrs: ops.Put, site: Site, index: Value, value: Value) -> Value:
    """Added up where indices meet; those outside are dropped."""
    positions, kind = site.operands
    rest = site.results[0].names[1:]
    values = aligned(value, kind.names, (*positions.names, *rest))
    rows = site.size(attrs.dim.name)
    # JAX counts negative indices from the end; they must be dropped as those beyond the end are.
    target = _jnp.where(index < 0, rows, index)
    shape = (rows, *values.shape[index.ndim :])
    return _jnp.zeros(shape, values.dtype).at[target].add(values, mode="drop")


def pick(attrs: ops.Pick, site: Site, x: Value, index: Value) -> Value:
    """By a product with what is one at the index."""
    kind, positions = site.operands
    last = _jnp.moveaxis(x, kind.names.index(attrs.dim), -1)
    at = aligned(index, positions.names, site.results[0].names)
    more = site.results[0].names[len(kind.names) - 1 :]
    last = last.reshape((*last.shape[:-1], *(1 for _ in more), last.shape[-1]))
    return _jnp.sum(_jnp.where(one_hot(at, last.shape[-1], bool), last, 0), axis=-1)


def shift(attrs: ops.Shift, site: Site, x: Value) -> Value:
    """Padded, or cut where padding is negative."""
    at = site.operands[0].names.index(attrs.dim)
    behind = site.size(attrs.to) + attrs.by - site.size(attrs.dim)
    padding = [(0, 0, 0)] * x.ndim
    padding[at] = (-attrs.by, behind, 0)
    return _jax.lax.pad(x, _jnp.zeros((), x.dtype), padding)


@_jax.custom_vjp
def _recorded(state: Value, value: Value) -> Value:
    return _jnp.zeros((), state.dtype)


def _kept(state: Value, value: Value) -> tuple[Value, Value]:
    return _recorded(state, value), value


def _given(value: Value, cotangent: Value) -> tuple[Value, Value]:
    return value, _jnp.zeros_like(value)


_recorded.defvjp(_kept, _given)


def record(attrs: ops.Record, site: Site, state: Value, value: Value) -> Value:
    """A zero with the value as its gradient."""
    return _recorded(state, aligned(value, site.operands[1].names, site.operands[0].names))


def spread(attrs: ops.Spread, site: Site, value: Value, index: Value) -> Value:
    """The value at the index along a new last dim."""
    kind, positions = site.operands
    at = aligned(index, positions.names, kind.names)
    return value[..., None] * one_hot(at, site.size(attrs.dim.name), value.dtype)
