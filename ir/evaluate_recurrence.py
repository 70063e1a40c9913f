"""Recurrences in plain numpy, position by position; their gradients by whole matrices."""

from __future__ import annotations

import numpy as np

from fllmc.ir.evaluate_parts import Array, Here
from fllmc.ir.ops import Recur, RecurGrad
from fllmc.ir.types import Type


class Layout:
    """One op's operands as [rest..., heads, along, inner dim]."""

    def __init__(self, attrs: Recur, here: Here) -> None:
        self.attrs, self.here = attrs, here
        self.kinds = here.operands
        self.orders = attrs.orders(here.operands[2])
        kind = here.operands[2]
        self.heads = here.extent(kind.dim(attrs.heads)) if attrs.heads else 1

    def order(self, position: int) -> tuple[tuple[str, ...], int]:
        """The dims of an operand in working order, less the missing heads, and where heads are."""
        names = [self.orders.key, self.orders.key, self.orders.value, *[self.orders.head] * 3]
        found = list(names[position])
        along = found.index(self.attrs.along)
        few = self.attrs.groups if position < 2 else self.attrs.heads
        if few:
            found[along], found[along + 1] = found[along + 1], found[along]
        return tuple(found), (along if few else -1)

    def arrange(self, array: Array, position: int) -> Array:
        """An operand in working order; q and k repeated for each head."""
        order, at = self.order(position)
        found = array.transpose([self.kinds[position].names.index(name) for name in order])
        if at < 0:
            at = len(self.orders.rest)
            found = np.expand_dims(found, at)
        return np.repeat(found, self.heads // found.shape[at], axis=at)

    def restore(self, array: Array, position: int) -> Array:
        """A gradient in working order, added up over the heads of a group, as the operand is."""
        order, at = self.order(position)
        kind: Type = self.kinds[position]
        axis = len(self.orders.rest) if at < 0 else at
        few = self.here.extent(kind.dim(order[at])) if at >= 0 else 1
        shape = (*array.shape[:axis], few, self.heads // few, *array.shape[axis + 1 :])
        found = array.reshape(shape).sum(axis=axis + 1)
        found = found if at >= 0 else np.squeeze(found, axis)
        return found.transpose([order.index(name) for name in kind.names])


def recur(attrs: Recur, here: Here, *arrays: Array) -> Array:
    """The recurrence, position by position."""
    layout = Layout(attrs, here)
    q, k, v, g, *more = (layout.arrange(array, n) for n, array in enumerate(arrays))
    state = np.zeros((*k.shape[:-2], k.shape[-1], v.shape[-1]))
    out = np.empty_like(v)
    for t in range(v.shape[-2]):
        state = np.exp(g[..., t])[..., None, None] * state
        key, value = k[..., t, :], v[..., t, :]
        if more:
            answer = np.einsum("...kv,...k->...v", state, key)
            value = more[0][..., t, None] * (value - answer)
        state = state + key[..., :, None] * value[..., None, :]
        out[..., t, :] = np.einsum("...kv,...k->...v", state, q[..., t, :])
    return layout.restore(out, 2)


def recur_grad(attrs: RecurGrad, here: Here, *arrays: Array) -> tuple[Array, ...]:
    """The gradients, from the recurrence written as products of whole matrices.

    y = (q k^T * D) e, where D_ts = exp(g_{s+1} + ... + g_t) for s <= t, and e = v, or for the delta
    rule e = (1 + w L)^{-1} w v, where L is k k^T * D below its diagonal.
    """
    layout = Layout(attrs, here)
    *given, dy = arrays
    q, k, v, g, *more = (layout.arrange(array, n) for n, array in enumerate(given))
    dy = layout.arrange(dy, 2)
    length = g.shape[-1]
    steps: Array = np.where(np.tri(length, k=-1, dtype=bool), g[..., :, None], 0.0)
    apart: Array = np.where(np.tri(length, dtype=bool), np.cumsum(steps, axis=-2), -np.inf)
    decay: Array = np.exp(apart)
    scores: Array = q @ swapped(k)
    written: Array = v
    lower: Array = (k @ swapped(k)) * decay * np.tri(length, k=-1)
    system: Array = np.eye(length)
    if more:
        w: Array = more[0][..., None]
        system = system + w * lower
        written = np.linalg.solve(system, w * v)
    d_weights: Array = dy @ swapped(written)
    d_v: Array = swapped(scores * decay) @ dy
    d_scores: Array = d_weights * decay
    d_apart: Array = d_scores * scores
    d_q: Array = d_scores @ k
    d_k: Array = swapped(d_scores) @ q
    sums: tuple[Array, ...] = ()
    if more:
        solved: Array = np.linalg.solve(swapped(system), d_v)
        d_system: Array = -solved @ swapped(written)
        d_w: Array = (solved * v).sum(-1) + (d_system * lower).sum(-1)
        d_lower: Array = more[0][..., None] * d_system * np.tri(length, k=-1)
        d_pairs: Array = d_lower * decay
        d_v, d_k = more[0][..., None] * solved, d_k + d_pairs @ k + swapped(d_pairs) @ k
        d_apart = d_apart + d_lower * lower
        sums = (layout.restore(d_w, 4),)
    d_total: Array = d_apart.sum(-1) - d_apart.sum(-2)
    d_g: Array = np.flip(np.cumsum(np.flip(d_total, -1), axis=-1), -1)
    found = (layout.restore(x, n) for n, x in enumerate((d_q, d_k, d_v, d_g)))
    return (*found, *sums)


def swapped(x: Array) -> Array:
    """The transpose of each matrix."""
    return np.swapaxes(x, -1, -2)
