"""Attention and rotary positions in plain numpy, the full score matrix at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fllmc.ir.evaluate_parts import Array, Here
from fllmc.ir.ops import Attend, AttendGrad, Rope
from fllmc.ir.types import Type


def rope(attrs: Rope, here: Here, x: Array) -> Array:
    """Each pair of `dim` turned by its position along `along`."""
    (kind,) = here.operands
    along, dim = kind.names.index(attrs.along), kind.names.index(attrs.dim)
    rows = np.moveaxis(x, (along, dim), (-2, -1))
    width = attrs.width(here.sizes)
    angle = here.positions(kind.dim(attrs.along))[:, None] * np.asarray(attrs.speeds(width))
    cosine, sine = np.cos(angle), np.sin(angle) * (-1.0 if attrs.inverse else 1.0)
    start, stop = attrs.behind, attrs.behind + width
    a, b = slice(start, start + width // 2), slice(start + width // 2, stop)
    if attrs.layout == "interleaved":
        a, b = slice(start, stop, 2), slice(start + 1, stop, 2)
    turned = rows.copy()
    turned[..., a] = attrs.magnitude * (rows[..., a] * cosine - rows[..., b] * sine)
    turned[..., b] = attrs.magnitude * (rows[..., b] * cosine + rows[..., a] * sine)
    return np.moveaxis(turned, (-2, -1), (along, dim))


class Layout:
    """How one attend op's operands lie: as [..., heads, along, dim] with the rest in q's order."""

    def __init__(self, attrs: Attend, here: Here) -> None:
        self.attrs = attrs
        self.q, self.k, self.v = here.operands[:3]
        special = (attrs.along, attrs.heads, attrs.dim)
        self.rows = attrs.first + here.positions(self.q.dim(attrs.along))
        self.rest = tuple(name for name in self.q.names if name not in special)
        self.groups = here.extent(self.k.dim(attrs.kv_heads))

    def order(self, kind: Type) -> tuple[str, ...]:
        """The dims of a q-like or k-like type in working order; lse has no `dim`."""
        attrs = self.attrs
        heads = attrs.heads if attrs.heads in kind.names else attrs.kv_heads
        along = attrs.along if attrs.along in kind.names else attrs.over
        width = attrs.dim if attrs.dim in kind.names else attrs.width
        return (*self.rest, heads, *(n for n in (along, width) if n in kind.names))

    def arrange(self, array: Array, kind: Type) -> Array:
        """The array in working order."""
        return array.transpose([kind.names.index(name) for name in self.order(kind)])

    def restore(self, array: Array, kind: Type) -> Array:
        """An array in working order, back in the type's own."""
        order = self.order(kind)
        return array.transpose([order.index(name) for name in kind.names])

    def grouped(self, array: Array, behind: int) -> Array:
        """Query heads as (key heads, heads of each); `behind` dims follow the heads."""
        at = array.ndim - behind - 1
        shape = (*array.shape[:at], self.groups, -1, *array.shape[at + 1 :])
        return array.reshape(shape)

    def capped(self, q: Array, k: Array) -> Array:
        """Scaled and capped scores [..., key heads, heads of each, queries, keys]."""
        queries = self.grouped(self.arrange(q, self.q), 2)
        keys = self.arrange(k, self.k)[..., :, None, :, :]
        scores: Array = queries @ np.swapaxes(keys, -1, -2) * self.attrs.scale
        cap = self.attrs.cap
        return cap * np.tanh(scores / cap) if cap else scores

    def distances(self, keys: int) -> Array:
        """Key position less query position [queries, keys]."""
        found: Array = np.arange(keys, dtype=np.int64) - self.rows[:, None]
        return found

    def scores(self, capped: Array, arrays: Sequence[Array], kinds: Sequence[Type]) -> Array:
        """With bias and mask, from all operands."""
        attrs, distances, scores = self.attrs, self.distances(capped.shape[-1]), capped
        if attrs.bias:
            at = attrs.taken - 1
            bias = ordered(arrays[at], kinds[at].names, (attrs.heads, attrs.bias))
            scores = scores + self.grouped(bias[:, distances + attrs.origin], 2)
        seen = distances <= 0 if attrs.mask == "causal" else np.ones(distances.shape, np.bool_)
        if attrs.window:
            seen &= np.abs(distances) < attrs.window
        if attrs.documents:
            begins = ordered(arrays[-1], kinds[-1].names, (*self.rest, attrs.along))
            keys = np.arange(capped.shape[-1], dtype=np.int64)
            seen = seen & (keys >= begins[..., None, None, :, None])
        return np.where(seen, scores, -np.inf)

    def sinks(self, extras: Sequence[Array]) -> Array:
        """Sinks [key heads, heads of each, 1, 1], or minus infinity."""
        if not self.attrs.sinks:
            return np.full((1, 1, 1, 1), -np.inf)
        return extras[0].reshape(self.groups, -1, 1, 1)


def flat_heads(array: Array, behind: int) -> Array:
    """(key heads, heads of each) as one dim of query heads again."""
    at = array.ndim - behind - 2
    return array.reshape((*array.shape[:at], -1, *array.shape[at + 2 :]))


def attend(attrs: Attend, here: Here, *arrays: Array) -> tuple[Array, Array]:
    """softmax(scores) v and the log-sum-exp of the scores."""
    q, k, v, *extras = arrays
    layout = Layout(attrs, here)
    scores = layout.scores(layout.capped(q, k), arrays, here.operands)
    sinks = layout.sinks(extras)
    top = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True) + np.exp(sinks - top)
    out = (weights / total) @ layout.arrange(v, layout.v)[..., :, None, :, :]
    lse = (top + np.log(total))[..., 0]
    kinds = here.results
    return (
        layout.restore(flat_heads(out, 2), kinds[0]),
        layout.restore(flat_heads(lse, 1), kinds[1]),
    )


def attend_grad(attrs: AttendGrad, here: Here, *arrays: Array) -> tuple[Array, ...]:
    """The gradients of all that attend takes, from its saved output and log-sum-exp."""
    q, k, v, *extras = arrays[: attrs.taken]
    out, lse, d_out = arrays[attrs.taken : attrs.taken + 3]
    kinds = here.operands
    layout = Layout(attrs, here)
    capped = layout.capped(q, k)
    sums = layout.grouped(layout.arrange(lse, kinds[attrs.taken + 1]), 1)[..., None]
    weights = np.exp(layout.scores(capped, arrays, kinds) - sums)
    queries = layout.grouped(layout.arrange(q, layout.q), 2)
    outs, d_outs = (
        layout.grouped(layout.arrange(array, kinds[attrs.taken]), 2) for array in (out, d_out)
    )
    keys = layout.arrange(k, layout.k)[..., :, None, :, :]
    values = layout.arrange(v, layout.v)[..., :, None, :, :]
    inner = (d_outs * outs).sum(axis=-1, keepdims=True)
    d_biased = weights * (d_outs @ np.swapaxes(values, -1, -2) - inner)
    slope = 1.0 - (capped / attrs.cap) ** 2 if attrs.cap else 1.0
    d_scores = d_biased * slope * attrs.scale
    d_q = flat_heads(d_scores @ keys, 2)
    d_k = (np.swapaxes(d_scores, -1, -2) @ queries).sum(axis=-3)
    d_v = (np.swapaxes(weights, -1, -2) @ d_outs).sum(axis=-3)
    found = [layout.restore(d_q, layout.q), layout.restore(d_k, layout.k)]
    found.append(layout.restore(d_v, layout.v))
    if attrs.sinks:
        share = np.exp(layout.sinks(extras) - sums) * inner
        found.append(-per_head(flat_heads(share, 2)).sum(axis=(1, 2)))
    if attrs.bias:
        kind = kinds[attrs.taken - 1]
        d_bias = np.zeros_like(ordered(extras[-1], kind.names, (attrs.heads, attrs.bias)))
        places = layout.distances(capped.shape[-1]) + attrs.origin
        where: Any = (slice(None), places)
        np.add.at(d_bias, where, per_head(flat_heads(d_biased, 2)))
        found.append(ordered(d_bias, (attrs.heads, attrs.bias), kind.names))
    return tuple(found)


def ordered(array: Array, names: Sequence[str], wanted: Sequence[str]) -> Array:
    """The array with its dims in the wanted order."""
    return array.transpose([names.index(name) for name in wanted])


def per_head(array: Array) -> Array:
    """[..., heads, a, b] added up over all that stands before the heads."""
    found: Array = array.reshape(-1, *array.shape[-3:]).sum(axis=0)
    return found
