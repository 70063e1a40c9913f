"""Mixtures of experts in JAX, by dense products with one-hot tensors: an oracle, not a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fllmc.codegen.jax_site import Site, Value
from fllmc.ir import ops
from fllmc.ir.types import Dim

_jnp: Any = jnp
_lax: Any = lax
_jax: Any = jax


def one_hot(index: Value, size: int, dtype: Any) -> Value:
    """All zeros for an index outside of the dim."""
    return _jax.nn.one_hot(index, size, dtype=dtype)


def top_k(attrs: ops.TopK, site: Site, x: Value) -> tuple[Value, Value]:
    """lax.top_k takes the lower of equal indices first."""
    last = _jnp.moveaxis(x, site.operands[0].names.index(attrs.dim), -1)
    values, index = _lax.top_k(last, site.size(attrs.to))
    return values, index.astype(_jnp.int64)


def tally(attrs: ops.Tally, site: Site, index: Value) -> Value:
    """How often each expert is chosen in each sequence."""
    hot = _jax.nn.one_hot(index, site.size(attrs.experts.name), dtype=_jnp.int64)
    return _jnp.sum(hot, axis=(-3, -2))


def seats(of: Sequence[str], site: Site, index: Value, dtype: Any) -> Value:
    """One where a choice has its row, [lead..., along, choices, *of], zero elsewhere.

    Its place among the choices of its expert is how many of these come before it.
    """
    experts = site.size(site.operands[1].index)
    hot = one_hot(index, experts, _jnp.int64)
    flat = hot.reshape(*index.shape[:-2], -1, experts)
    before = _jnp.sum((_jnp.cumsum(flat, axis=-2) - flat).reshape(hot.shape) * hot, axis=-1)
    if len(of) == 2:
        slot = one_hot(before, site.size(of[1]), dtype)
        return one_hot(index, experts, dtype)[..., None] * slot[..., None, :]
    counts = _jnp.sum(flat, axis=-2)
    earlier = _jnp.cumsum(counts, axis=-1) - counts
    start = _jnp.sum(earlier[..., None, None, :] * hot, axis=-1)
    return one_hot(start + before, site.size(of[0]), dtype)


def dispatch(attrs: ops.Dispatch, site: Site, value: Value, index: Value) -> Value:
    """Each choice's row times its seats."""
    seated_at = seats([dim.name for dim in attrs.to], site, index, value.dtype)
    names = (*site.operands[1].names, *(f"to {dim.name}" for dim in attrs.to))
    kinds = (site.operands[0].names, names)
    return einsum(
        kinds, (value, seated_at), seated(site.results[0].names, attrs.to, index.ndim - 2)
    )


def combine(attrs: ops.Combine, site: Site, rows: Value, index: Value) -> Value:
    """The same product the other way round."""
    seated_at = seats(attrs.of, site, index, rows.dtype)
    of = [Dim(name) for name in attrs.of]
    names = (*site.operands[1].names, *(f"to {name}" for name in attrs.of))
    kinds = (seated(site.operands[0].names, of, index.ndim - 2), names)
    return einsum(kinds, (rows, seated_at), site.results[0].names)


def seated(names: Sequence[str], of: Sequence[Dim], at: int) -> tuple[str, ...]:
    """The names with those of expert layout, which stand at `at`, told from others."""
    return (*names[:at], *(f"to {dim.name}" for dim in of), *names[at + len(of) :])


def einsum(kinds: Sequence[Sequence[str]], arrays: Sequence[Value], wanted: Sequence[str]) -> Value:
    """The product of arrays with named dims, summed over what is not wanted."""
    names = dict.fromkeys(name for kind in kinds for name in kind)
    letter = {name: chr(ord("a") + number) for number, name in enumerate(names)}
    given = ",".join("".join(letter[name] for name in kind) for kind in kinds)
    result = "".join(letter[name] for name in wanted)
    return _jnp.einsum(f"{given}->{result}", *arrays, precision="highest")


def owners(index: Value, experts: int, rows: int, dtype: Any) -> Value:
    """One where a row is of an expert, [lead..., rows, experts], zero elsewhere."""
    counts = _jnp.sum(one_hot(index, experts, _jnp.int64), axis=(-3, -2))
    stop = _jnp.cumsum(counts, axis=-1)[..., None, :]
    start = stop - counts[..., None, :]
    row = _jnp.arange(rows)[:, None]
    return ((row >= start) & (row < stop)).astype(dtype)


def grouped_dot(
    attrs: ops.GroupedDot, site: Site, rows: Value, weight: Value, index: Value
) -> Value:
    """Each row with each expert's matrix, where it is its own."""
    owned = owners(index, site.size(attrs.experts), site.size(attrs.rows), rows.dtype)
    lead = site.operands[2].names[:-2]
    kinds = (
        site.operands[0].names,
        site.operands[1].names,
        (*lead, attrs.rows, attrs.experts),
    )
    return einsum(kinds, (rows, weight, owned), site.results[0].names)


def grouped_outer(attrs: ops.GroupedOuter, site: Site, a: Value, b: Value, index: Value) -> Value:
    """Outer products of rows, summed for their owners."""
    owned = owners(index, site.size(attrs.experts), site.size(attrs.rows), a.dtype)
    left, right, chosen = (kind.names for kind in site.operands)
    kinds = (left, right, (*chosen[:-2], attrs.rows, attrs.experts))
    return einsum(kinds, (a, b, owned), site.results[0].names)
