"""Attention and rotary positions in plain numpy, the full score matrix at once."""

from __future__ import annotations

import numpy as np

from fllmc.ir.evaluate_parts import Array, Here
from fllmc.ir.ops import Attend, AttendGrad, Rope
from fllmc.ir.types import Type


def rope(attrs: Rope, here: Here, x: Array) -> Array:
    """Each pair of `dim` turned by its position along `along`."""
    (kind,) = here.operands
    along, dim = kind.names.index(attrs.along), kind.names.index(attrs.dim)
    half = x.shape[dim] // 2
    rows = np.moveaxis(x, (along, dim), (-2, -1))
    speed: Array = attrs.theta ** (-2.0 * np.arange(half, dtype=np.float64) / x.shape[dim])
    angle = here.positions(kind.dim(attrs.along))[:, None] * speed
    cosine, sine = np.cos(angle), np.sin(angle) * (-1.0 if attrs.inverse else 1.0)
    a, b = slice(half), slice(half, None)
    if attrs.layout == "interleaved":
        a, b = slice(0, None, 2), slice(1, None, 2)
    turned = np.empty_like(rows)
    turned[..., a] = rows[..., a] * cosine - rows[..., b] * sine
    turned[..., b] = rows[..., b] * cosine + rows[..., a] * sine
    return np.moveaxis(turned, (-2, -1), (along, dim))


class Layout:
    """How one attend op's operands lie: as [..., heads, along, dim] with the rest in q's order."""

    def __init__(self, attrs: Attend, here: Here) -> None:
        self.attrs = attrs
        self.q, self.k = here.operands[:2]
        special = (attrs.along, attrs.heads, attrs.dim)
        self.rows = attrs.first + here.positions(self.q.dim(attrs.along))
        self.rest = tuple(name for name in self.q.names if name not in special)
        self.groups = here.extent(self.k.dim(attrs.kv_heads))
        self.starts = here.operands[-1] if attrs.documents else None

    def order(self, kind: Type) -> tuple[str, ...]:
        """The dims of a q-like or k-like type in working order; lse has no `dim`."""
        heads = self.attrs.heads if self.attrs.heads in kind.names else self.attrs.kv_heads
        along = self.attrs.along if self.attrs.along in kind.names else self.attrs.over
        tail = tuple(n for n in (along, self.attrs.dim) if n in kind.names)
        return (*self.rest, heads, *tail)

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

    def scores(self, q: Array, k: Array, starts: Array | None) -> Array:
        """Scaled, masked scores [..., key heads, heads of each, queries, keys]."""
        queries = self.grouped(self.arrange(q, self.q), 2)
        keys = self.arrange(k, self.k)[..., :, None, :, :]
        scores: Array = queries @ np.swapaxes(keys, -1, -2) * self.attrs.scale
        if self.attrs.mask == "causal":
            seen = np.arange(scores.shape[-1], dtype=np.int64) <= self.rows[:, None]
            scores = np.where(seen, scores, -np.inf)
        if self.starts is not None and starts is not None:
            order = (*self.rest, self.attrs.along)
            begins = starts.transpose([self.starts.names.index(name) for name in order])
            keys = np.arange(scores.shape[-1], dtype=np.int64)
            scores = np.where(keys >= begins[..., None, None, :, None], scores, -np.inf)
        return scores


def flat_heads(array: Array, behind: int) -> Array:
    """(key heads, heads of each) as one dim of query heads again."""
    at = array.ndim - behind - 2
    return array.reshape((*array.shape[:at], -1, *array.shape[at + 2 :]))


def attend(attrs: Attend, here: Here, *arrays: Array) -> tuple[Array, Array]:
    """softmax(q k^T * scale + mask) v and the log-sum-exp of the scores."""
    q, k, v = arrays[:3]
    layout = Layout(attrs, here)
    scores = layout.scores(q, k, arrays[3] if attrs.documents else None)
    top = scores.max(axis=-1, keepdims=True)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    out = (weights / total) @ layout.arrange(v, layout.k)[..., :, None, :, :]
    lse = (top + np.log(total))[..., 0]
    kinds = here.results
    return (
        layout.restore(flat_heads(out, 2), kinds[0]),
        layout.restore(flat_heads(lse, 1), kinds[1]),
    )


def attend_grad(attrs: AttendGrad, here: Here, *arrays: Array) -> tuple[Array, Array, Array]:
    """The gradients of q, k and v from the saved output and log-sum-exp."""
    q, k, v, out, lse, d_out = arrays[:6]
    layout = Layout(attrs, here)
    scores = layout.scores(q, k, arrays[6] if attrs.documents else None)
    weights = np.exp(scores - layout.grouped(layout.arrange(lse, here.operands[4]), 1)[..., None])
    queries, outs, d_outs = (
        layout.grouped(layout.arrange(array, layout.q), 2) for array in (q, out, d_out)
    )
    keys, values = (layout.arrange(array, layout.k)[..., :, None, :, :] for array in (k, v))
    inner = (d_outs * outs).sum(axis=-1, keepdims=True)
    d_scores = weights * (d_outs @ np.swapaxes(values, -1, -2) - inner) * attrs.scale
    d_q = flat_heads(d_scores @ keys, 2)
    d_k = (np.swapaxes(d_scores, -1, -2) @ queries).sum(axis=-3)
    d_v = (np.swapaxes(weights, -1, -2) @ d_outs).sum(axis=-3)
    return (
        layout.restore(d_q, layout.q),
        layout.restore(d_k, layout.k),
        layout.restore(d_v, layout.k),
    )
