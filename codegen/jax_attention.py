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
    length, width = rows.shape[-2], attrs.rotary or rows.shape[-1]
    before, rows, rest = _jnp.split(rows, [attrs.behind, attrs.behind + width], axis=-1)
    # Pairs as the last two dims: (pair, side) or (side, pair).
    halves = attrs.layout == "half"
    pairs = rows.reshape(*rows.shape[:-1], *((2, width // 2) if halves else (width // 2, 2)))
    real, imaginary = (_jnp.take(pairs, i, axis=-2 if halves else -1) for i in (0, 1))
    angles = _jnp.outer(_jnp.arange(length), speeds(attrs, width)).astype(x.dtype)
    turn = _lax.complex(_jnp.cos(angles), (-1 if attrs.inverse else 1) * _jnp.sin(angles))
    turned = _lax.complex(real, imaginary) * turn * attrs.magnitude
    sides = _jnp.stack([turned.real, turned.imag], axis=-2 if halves else -1)
    whole = _jnp.concatenate([before, sides.reshape(rows.shape), rest], axis=-1)
    return aligned(whole, order, names)


def speeds(attrs: ops.Rope, width: int) -> Value:
    """Radians per position of each pair: plain, slowed down, or a mixture of both."""
    pairs = _jnp.arange(width // 2)
    plain = _jnp.exp(-_jnp.log(attrs.theta) * pairs * 2 / width)
    slow = plain / (_jnp.asarray(attrs.factors) if attrs.factors else attrs.factor)
    if not attrs.ramp:
        return slow
    at = plain if attrs.ramp == "speed" else pairs
    kept = _jnp.clip((at - attrs.low) / (attrs.high - attrs.low), 0, 1)
    return (1 - kept) * slow + kept * plain


def scored(
    attrs: ops.Attend,
    q: Value,
    k: Value,
    sinks: Value | None,
    bias: Value | None,
    starts: Value | None,
) -> Value:
    """Masked scores [rest, heads, queries, keys] of q and k in [rest, heads, along, dim].

    With sinks one more key stands last, which all queries see. `starts` are [rest, along].
    """
    scores = _jnp.einsum("...qd,...kd->...qk", q, k, precision="highest") * attrs.scale
    if attrs.cap:
        scores = attrs.cap * _jnp.tanh(scores / attrs.cap)
    rows, columns = scores.shape[-2:]
    if bias is not None:
        places = _jnp.arange(columns) - _jnp.arange(rows)[:, None] + attrs.origin - attrs.first
        scores = scores + _jnp.take(bias, places, axis=1)
    seen = _jnp.ones((rows, columns), bool)
    if attrs.mask == "causal":
        seen = _jnp.tril(seen, attrs.first)
    if attrs.window:
        seen &= _jnp.triu(seen, attrs.first - attrs.window + 1)
        seen &= _jnp.tril(_jnp.ones_like(seen), attrs.first + attrs.window - 1)
    scores = _jnp.where(seen, scores, -_jnp.inf)
    if starts is not None:
        before = _jnp.arange(columns) < starts[..., None, :, None]
        scores = _jnp.where(before, -_jnp.inf, scores)
    if sinks is not None:
        last = _jnp.broadcast_to(sinks[:, None, None], (*scores.shape[:-1], 1))
        scores = _jnp.concatenate([scores, last], axis=-1)
    return scores


def attend(attrs: ops.Attend, site: Site, *arrays: Value) -> tuple[Value, Value]:
    """The output and the log-sum-exp of the scores."""
    q, k, v, *extras = arrays
    names = [kind.names for kind in site.operands]
    special = (attrs.along, attrs.heads, attrs.dim)
    rest = tuple(name for name in names[0] if name not in special)
    q_order = (*rest, attrs.heads, attrs.along, attrs.dim)
    k_order = (*rest, attrs.kv_heads, attrs.over, attrs.dim)
    v_order = (*k_order[:-1], attrs.width)
    repeats = site.size(attrs.heads) // site.size(attrs.kv_heads)
    k = _jnp.repeat(aligned(k, names[1], k_order), repeats, axis=-3)
    v = _jnp.repeat(aligned(v, names[2], v_order), repeats, axis=-3)
    sinks = extras[0] if attrs.sinks else None
    bias = None
    if attrs.bias:
        bias = aligned(arrays[attrs.taken - 1], names[attrs.taken - 1], (attrs.heads, attrs.bias))
    starts = aligned(arrays[-1], names[-1], (*rest, attrs.along)) if attrs.documents else None
    scores = scored(attrs, aligned(q, names[0], q_order), k, sinks, bias, starts)
    lse = _jax.nn.logsumexp(scores, axis=-1)
    weights = _jax.nn.softmax(scores, axis=-1)[..., : v.shape[-2]]
    out = _jnp.einsum("...qk,...kd->...qd", weights, v, precision="highest")
    given = tuple(attrs.width if name == attrs.dim else name for name in names[0])
    lse_names = tuple(name for name in names[0] if name != attrs.dim)
    out_order = (*q_order[:-1], attrs.width)
    return aligned(out, out_order, given), aligned(lse, q_order[:-1], lse_names)


def attend_grad(attrs: ops.AttendGrad, site: Site, *arrays: Value) -> tuple[Value, ...]:
    """By JAX's own reverse mode over attend; the saved output and log-sum-exp are not used."""
    starts = arrays[attrs.taken + 3 :]

    def forward(*args: Value) -> Value:
        return attend(attrs, site, *args, *starts)[0]

    _, pull = _jax.vjp(forward, *arrays[: attrs.taken])
    return tuple(pull(arrays[attrs.taken + 2]))
