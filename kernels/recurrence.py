"""Recurrences whose state is a matrix, in chunks of the sequence, and their gradients.

q, k: [batch, along, groups, dim]; v: [batch, along, heads, value]; g, w: [batch, along, heads]; the
meaning is that of `fllmc/ir/ops/recurrence.py`. Within a chunk the sums over earlier positions are
products of matrices; what lies before it comes in by the state at its beginning (Dao and Gu 2024,
section 6; Yang et al. 2024, section 3 for the delta rule). All is in float32 at least.

Both gradients are such sums again. With D_ts the decay from s to t, y_t is the sum over s <= t of
D_ts (q_t k_s) e_s; so d_q is the same sum with the roles (d_y, e, k), d_k and d_e are such sums
from the other end of the sequence, and the slope in the decays up to t is q_t d_q_t - k_t d_k_t.
What the delta rule writes solves (1 + w L) e = w v with L_ts = D_ts (k_t k_s) below the diagonal;
the transposed system is the same from the other end.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

CHUNK = 64


def recur(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor | None = None, *, out: Tensor
) -> None:
    """y, from zero state."""
    q, k, v, g, *more = _arranged(q, k, v, g, w)
    written = _solved(k, v, g, *more) if more else v
    out.copy_(_summed(q, k, written, g).transpose(1, 2))


def recur_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    w: Tensor | None,
    dy: Tensor,
    *,
    out: tuple[Tensor, ...],
) -> None:
    """(d_q, d_k, d_v, d_g) and, for the delta rule, d_w."""
    groups = q.shape[2]
    q, k, v, g, *more = _arranged(q, k, v, g, w)
    dy = _wide(dy).transpose(1, 2)
    back = _shifted(g)
    e = _solved(k, v, g, *more) if more else v
    d_q = _summed(dy, e, k, g, strict=True)
    d_k = _flipped(_summed(_flipped(e), _flipped(dy), _flipped(q), back, strict=True))
    d_v = _flipped(_summed(_flipped(k), _flipped(q), _flipped(dy), back))
    d_total = (q * d_q).sum(-1) - (k * d_k).sum(-1)
    here = (dy * e).sum(-1, keepdim=True)  # a position's own decay is one, and has no slope
    d_q, d_k = d_q + here * k, d_k + here * q
    if more:
        (w_row,) = more
        f = _flipped(_solved(_flipped(k), _flipped(d_v), back, w_row.flip(-1)))
        answered = _summed(k, k, e, g, strict=True)
        later = _flipped(_summed(_flipped(k), _flipped(k), _flipped(f), back, strict=True))
        out[4].copy_(((d_v - later) * (v - answered)).sum(-1).transpose(1, 2))
        early = _summed(f, e, k, g, strict=True)
        late = _flipped(_summed(_flipped(e), _flipped(f), _flipped(k), back, strict=True))
        d_k = d_k - early - late
        d_total = d_total - (k * early).sum(-1) + (k * late).sum(-1)
        d_v = f
    for target, found in zip(out[:2], (d_q, d_k), strict=False):
        shared = found.unflatten(1, (groups, -1)).sum(2) if groups < found.shape[1] else found
        target.copy_(shared.transpose(1, 2))
    out[2].copy_(d_v.transpose(1, 2))
    out[3].copy_(d_total.flip(-1).cumsum(-1).flip(-1).transpose(1, 2))


def _arranged(q: Tensor, k: Tensor, v: Tensor, g: Tensor, w: Tensor | None) -> tuple[Tensor, ...]:
    """All with heads before the sequence, and q and k for each head."""
    heads = v.shape[2]
    rows = (g,) if w is None else (g, w)
    pair = (x.repeat_interleave(heads // x.shape[2], 2) for x in (q, k))
    return tuple(_wide(x).transpose(1, 2) for x in (*pair, v, *rows))


def _summed(q: Tensor, k: Tensor, v: Tensor, g: Tensor, strict: bool = False) -> Tensor:
    """The sum over s <= t, or s < t if strict, of exp(g_{s+1} + ... + g_t) (q_t k_s) v_s."""
    length = q.shape[2]
    q, k, v, g = _chunked(q, k, v, g)
    out = ((q @ k.transpose(-1, -2)) * _decays(g, strict)) @ v
    before, behind = _ends(g)
    written = (k * behind[..., None]).transpose(-1, -2) @ v
    reads = q * before[..., None]
    state = torch.zeros_like(written[:, :, 0])
    for n in range(q.shape[2]):
        out[:, :, n] += reads[:, :, n] @ state
        state = state * before[:, :, n, -1, None, None] + written[:, :, n]
    return out.flatten(2, 3)[:, :, :length]


def _solved(k: Tensor, v: Tensor, g: Tensor, w: Tensor) -> Tensor:
    """e with e_t = w_t (v_t - sum over s < t of exp(g_{s+1} + ... + g_t) (k_t k_s) e_s)."""
    length = k.shape[2]
    k, v, w, g = _chunked(k, v, w[..., None], g)
    before, behind = _ends(g)
    lower = (k @ k.transpose(-1, -2)) * _decays(g, True) * w
    both = torch.cat((w * v, w * k * before[..., None]), -1)
    system = lower + torch.eye(k.shape[-2], dtype=k.dtype, device=k.device)
    solved = torch.linalg.solve_triangular(system, both, upper=False, unitriangular=True)
    own, through = solved.split((v.shape[-1], k.shape[-1]), -1)
    keys = (k * behind[..., None]).transpose(-1, -2)
    state = torch.zeros_like(keys[:, :, 0] @ own[:, :, 0])
    out = torch.empty_like(own)
    for n in range(k.shape[2]):
        out[:, :, n] = own[:, :, n] - through[:, :, n] @ state
        state = state * before[:, :, n, -1, None, None] + keys[:, :, n] @ out[:, :, n]
    return out.flatten(2, 3)[:, :, :length]


def _chunked(*given: Tensor) -> tuple[Tensor, ...]:
    """All in chunks, zeros at the end."""
    missing = -given[0].shape[2] % CHUNK
    pads = (functional.pad(x, (0, 0) * (x.dim() - 3) + (0, missing)) for x in given)
    return tuple(x.unflatten(2, (-1, CHUNK)) for x in pads)


def _decays(g: Tensor, strict: bool) -> Tensor:
    """The decay from each position of a chunk to each that is not before it, or is behind it.

    The logarithms between are added up for each pair: differences of sums would lose what small
    ones add behind a large one.
    """
    length = g.shape[-1]
    ones = torch.ones((length, length), dtype=torch.bool, device=g.device)
    steps = g[..., :, None].expand(*g.shape, length).masked_fill(~ones.tril(-1), 0.0)
    return steps.cumsum(-2).masked_fill(~ones.tril(-int(strict)), float("-inf")).exp()


def _ends(g: Tensor) -> tuple[Tensor, Tensor]:
    """The decays from before a chunk to each position, and from each to the chunk's end."""
    rest = functional.pad(g.flip(-1)[..., :-1], (1, 0)).cumsum(-1).flip(-1)
    return g.cumsum(-1).exp(), rest.exp()


def _shifted(g: Tensor) -> Tensor:
    """The logarithms of decays as they are met from the end of the sequence."""
    return functional.pad(g.flip(2)[..., :-1], (1, 0))


def _flipped(x: Tensor) -> Tensor:
    """The sequence from its end."""
    return x.flip(2)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
