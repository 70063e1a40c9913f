"""Convolutions and recurrences in JAX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fllmc.codegen.jax_site import Site, Value, aligned
from fllmc.ir import ops
from fllmc.ir.ops.convolution import Parts, conv_parts

# JAX's functions carry no precise types of their own.
_jnp: Any = jnp
_lax: Any = lax
_jax: Any = jax
Unary = Callable[[Value], Value]


def conv(attrs: ops.Conv, site: Site, x: Value, w: Value) -> Value:
    """By XLA's own convolution, with channels first."""
    parts = conv_parts(attrs, (*site.operands, *site.results))
    names = tuple(kind.names for kind in (*site.operands, *site.results))
    return convolved(attrs, site, parts, names, x, w)


def conv_grad(attrs: ops.ConvInput | ops.ConvWeight, site: Site, a: Value, b: Value) -> Value:
    """By JAX's own reverse mode over the convolution, which is linear in either operand."""
    first, second, third = conv_parts(attrs, (*site.operands, *site.results))
    kinds = (*site.operands, *site.results)
    shape = tuple(site.size(name) for name in kinds[2].names)
    unknown = _jnp.zeros(shape, a.dtype)
    if isinstance(attrs, ops.ConvWeight):
        parts, names = (first, third, second), (kinds[0].names, kinds[2].names, kinds[1].names)
        of_w: Unary = lambda w: convolved(attrs, site, parts, names, a, w)  # noqa: E731
        return _jax.vjp(of_w, unknown)[1](b)[0]
    parts, names = (third, second, first), (kinds[2].names, kinds[1].names, kinds[0].names)
    of_x: Unary = lambda x: convolved(attrs, site, parts, names, x, b)  # noqa: E731
    return _jax.vjp(of_x, unknown)[1](a)[0]


def convolved(
    attrs: ops.Conv,
    site: Site,
    parts: tuple[Parts, Parts, Parts],
    names: tuple[tuple[str, ...], ...],
    x: Value,
    w: Value,
) -> Value:
    """The convolution of x and w, whose dims are these by part; x, w and y have these names."""
    size = site.size
    orders = [tuple(name for part in each for name in part) for each in parts]

    def shaped(value: Value, at: int, merge: int) -> Value:
        found = aligned(value, names[at], orders[at])
        counts = [_product(site, part) for part in parts[at]]
        counts[merge : merge + 2] = [counts[merge] * counts[merge + 1]]
        return found.reshape(counts)

    padding = [
        (before, (size(to) - 1) * stride + size(taps) - before - size(along))
        for along, taps, to, stride, before in attrs.windows
    ]
    found = _lax.conv_general_dilated(
        shaped(x, 0, 1), shaped(w, 1, 0), attrs.stride, padding,
        feature_group_count=_product(site, parts[1][0]), precision="highest",
    )  # fmt: skip
    whole = found.reshape([size(name) for name in orders[2]])
    return aligned(whole, orders[2], names[2])


def _product(site: Site, names: tuple[str, ...]) -> int:
    total = 1
    for name in names:
        total *= site.size(name)
    return total


def recur(attrs: ops.Recur, site: Site, *arrays: Value) -> Value:
    """By a scan along the sequence."""
    kinds = site.operands
    orders = attrs.orders(kinds[2])
    along, head = (attrs.along,), attrs.heads or "one head"
    group = attrs.groups or "one group"
    rows = (*along, *orders.rest, head)
    key, value = (*along, *orders.rest, group, attrs.dim), (*rows, attrs.value)
    wanted = (key, key, value, rows, rows)
    q, k, v, g, *more = (
        aligned(array, kind.names, names)
        for array, kind, names in zip(arrays, kinds, wanted, strict=False)
    )
    q, k = (_jnp.repeat(x, v.shape[-2] // x.shape[-2], axis=-2) for x in (q, k))

    def step(state: Value, given: tuple[Value, ...]) -> tuple[Value, Value]:
        q, k, v, g, *more = given
        state = _jnp.exp(g)[..., None, None] * state
        if more:
            answer = _jnp.einsum("...k,...kv->...v", k, state, precision="highest")
            v = more[0][..., None] * (v - answer)
        state = state + k[..., :, None] * v[..., None, :]
        return state, _jnp.einsum("...k,...kv->...v", q, state, precision="highest")

    begin = _jnp.zeros((*v.shape[1:-1], k.shape[-1], v.shape[-1]), v.dtype)
    _, out = _lax.scan(step, begin, (q, k, v, g, *more))
    if not attrs.heads:
        out, value = out[..., 0, :], (*along, *orders.rest, attrs.value)
    return aligned(out, value, kinds[2].names)


def recur_grad(attrs: ops.RecurGrad, site: Site, *arrays: Value) -> tuple[Value, ...]:
    """By JAX's own reverse mode over the scan."""
    *given, dy = arrays
    forward: Callable[..., Value] = lambda *args: recur(attrs, site, *args)  # noqa: E731
    return tuple(_jax.vjp(forward, *given)[1](dy))
