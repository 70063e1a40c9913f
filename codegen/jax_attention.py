"""Attention and rotary positions in JAX."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fllmc.codegen.jax_site import Site, Value, aligned
from fllmc.ir import ops

# JAX's functions carry no precise types of their own.
_jnp: Any = jnp
_lax: Any = lax
_jax: Any = jax


def rope(attrs: ops.Rope, site: Site, x: Value) -> Value:
    """Each pair as a complex number, multiplied by a unit one."""
    names = site.operands[0].names
    order = (*(n for n in names if n not in (attrs.along, attrs.dim)), attrs.along, attrs.dim)
    rows = aligned(x, names, order)
    length, width = rows.shape[-2:]
    # Pairs as the last two dims: (pair, side) or (side, pair).
    halves = attrs.layout == "half"
    pairs = rows.reshape(*rows.shape[:-1], *((2, width // 2) if halves else (width // 2, 2)))
    real, imaginary = (_jnp.take(pairs, i, axis=-2 if halves else -1) for i in (0, 1))
    speeds = _jnp.exp(-_jnp.log(attrs.theta) * _jnp.arange(0, width, 2) / width)
    angles = _jnp.outer(_jnp.arange(length), speeds).astype(x.dtype)
    turn = _lax.complex(_jnp.cos(angles), (-1 if attrs.inverse else 1) * _jnp.sin(angles))
    turned = _lax.complex(real, imaginary) * turn
    sides = _jnp.stack([turned.real, turned.imag], axis=-2 if halves else -1)
    return aligned(sides.reshape(rows.shape), order, names)


def scored(attrs: ops.Attend, q: Value, k: Value, starts: Value | None) -> Value:
    """Masked scores [rest, heads, queries, keys] of q and k in [rest, heads, along, dim].

    `starts` are [rest, along].
    """
    scores = _jnp.einsum("...qd,...kd->...qk", q, k, precision="highest") * attrs.scale
    if attrs.mask == "causal":
        seen = _jnp.tril(_jnp.ones(scores.shape[-2:], bool), attrs.first)
        scores = _jnp.where(seen, scores, -_jnp.inf)
    if starts is not None:
        before = _jnp.arange(scores.shape[-1]) < starts[..., None, :, None]
        scores = _jnp.where(before, -_jnp.inf, scores)
    return scores


def attend(
    attrs: ops.Attend, site: Site, q: Value, k: Value, v: Value, *starts: Value
) -> tuple[Value, Value]:
    """The output and the log-sum-exp of the scores."""
    q_names, k_names = site.operands[0].names, site.operands[1].names
    special = (attrs.along, attrs.heads, attrs.dim)
    rest = tuple(name for name in q_names if name not in special)
    q_order = (*rest, attrs.heads, attrs.along, attrs.dim)
    k_order = (*rest, attrs.kv_heads, attrs.over, attrs.dim)
    repeats = site.size(attrs.heads) // site.size(attrs.kv_heads)
    k, v = (_jnp.repeat(aligned(x, k_names, k_order), repeats, axis=-3) for x in (k, v))
    begins = [aligned(x, site.operands[-1].names, (*rest, attrs.along)) for x in starts]
    scores = scored(attrs, aligned(q, q_names, q_order), k, begins[0] if begins else None)
    lse = _jax.nn.logsumexp(scores, axis=-1)
    out = _jnp.einsum(
        "...qk,...kd->...qd", _jax.nn.softmax(scores, axis=-1), v, precision="highest"
    )
    lse_names = tuple(name for name in q_names if name != attrs.dim)
    return aligned(out, q_order, q_names), aligned(lse, q_order[:-1], lse_names)


def attend_grad(attrs: ops.AttendGrad, site: Site, *arrays: Value) -> tuple[Value, ...]:
    """By JAX's own reverse mode over attend; the saved output and log-sum-exp are not used."""
    q, k, v, _, _, d_out, *starts = arrays

    def forward(*args: Value) -> Value:
        return attend(attrs, site, *args, *starts)[0]

    _, pull = _jax.vjp(forward, q, k, v)
    return tuple(pull(d_out))
