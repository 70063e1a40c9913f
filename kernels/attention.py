"""Attention with grouped heads, forward and backward, into given views.

Shapes: q, o and their gradients [batch, heads, queries, dim]; k, v and theirs [batch, groups, keys,
dim]; lse [batch, heads, queries], the natural log-sum-exp of the scaled scores, float32 (float64
for float64). Head h uses group h // (heads / groups). A causal mask is aligned bottom right: the
last query sees every key. `starts` [batch, queries], if given, are the first keys that queries see,
and a query that sees none gives 0 with a log-sum-exp of -inf. On the CPU PyTorch's blocked kernel
does the work where no starts are given; else scores are made for some queries at a time, which
bounds memory. Sums are in float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_GRAD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_SCORES = 1 << 26  # score elements held at once by the plain path: 256 MiB in float32


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    out: tuple[Tensor, Tensor],
    starts: Tensor | None = None,
) -> None:
    """(o, lse) = softmax(q k^T * scale + mask) v and the log-sum-exp of its scores."""
    if starts is None and _blocked(q, k, causal):
        o, lse = _FLASH(_packed(q), _packed(k), _packed(v), 0.0, causal, scale=scale)
        out[0].copy_(o)
        out[1].copy_(lse)
    else:
        _attend_plain(q, k, v, scale, causal, starts, out)


def attend_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    *,
    scale: float,
    causal: bool,
    out: tuple[Tensor, Tensor, Tensor],
    starts: Tensor | None = None,
) -> None:
    """(dq, dk, dv) of attend, from its results and the gradient of o.

    FlashAttention-2 (Dao 2023), section 3.1: P = exp(scores - lse), D = sum(d_out * o),
    dS = P * (d_out v^T - D).
    """
    if starts is not None or not _blocked(q, k, causal):
        _grad_plain(q, k, v, o, lse, d_out, scale, causal, starts, out)
    elif q.shape[1] == k.shape[1] or q.dtype in (torch.float32, torch.float64):
        given = [_packed(x) for x in (d_out, q, k, v, o)]
        found = _FLASH_GRAD(*given, lse, 0.0, causal, scale=scale)
        for target, value in zip(out, found, strict=True):
            target.copy_(value)
    else:
        _grad_groups(q, k, v, o, lse, d_out, scale, causal, out)


def _blocked(q: Tensor, k: Tensor, causal: bool) -> bool:
    """Whether PyTorch's CPU kernel takes the operands; it aligns its causal mask at the top."""
    aligned = not causal or q.shape[2] == k.shape[2]
    return q.device.type == "cpu" and aligned and q.numel() > 0


def _packed(x: Tensor) -> Tensor:
    """The tensor, copied if its rows can't be read as a matrix's: the CPU kernel does not check."""
    if x.stride(3) == 1 and x.stride(2) >= x.shape[3]:
        return x
    return x.clone(memory_format=torch.contiguous_format)


def _grad_groups(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    scale: float,
    causal: bool,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    """The gradient in low precision, the heads of a group summed in float32.

    The CPU kernel would add them up in their own precision.
    """
    groups = k.shape[1]
    split = [x.unflatten(1, (groups, -1)).unbind(2) for x in (d_out, q, o, lse, out[0])]
    total_k, total_v = (torch.zeros(k.shape, dtype=torch.float32) for _ in range(2))
    keys, values = _packed(k), _packed(v)
    for d_part, q_part, o_part, lse_part, target in zip(*split, strict=True):
        queries = (_packed(d_part), _packed(q_part), keys, values, _packed(o_part))
        dq, dk, dv = _FLASH_GRAD(*queries, lse_part, 0.0, causal, scale=scale)
        target.copy_(dq)
        total_k.add_(dk)
        total_v.add_(dv)
    out[1].copy_(total_k)
    out[2].copy_(total_v)


class _Chunk:
    """Some queries of all heads against the keys they see: rows are (heads of a group, queries)."""

    def __init__(
        self, q: Tensor, k: Tensor, causal: bool, starts: Tensor | None, first: int, last: int
    ) -> None:
        self.queries = slice(first, last)
        self.starts = None if starts is None else starts[:, self.queries]
        self.groups, self.shift = k.shape[1], k.shape[2] - q.shape[2]
        self.causal, self.device = causal, q.device
        self.keys = slice(0, last + self.shift if causal else k.shape[2])
        self.wide = torch.float64 if q.dtype == torch.float64 else torch.float32

    def rows(self, x: Tensor) -> Tensor:
        """A q-like tensor's chunk in the wide dtype: [batch, groups, rows, dim]."""
        part = x[:, :, self.queries].to(self.wide)
        return part.unflatten(1, (self.groups, -1)).flatten(2, 3)

    def seen(self, x: Tensor) -> Tensor:
        """The seen part of a k-like tensor in the wide dtype."""
        return x[:, :, self.keys].to(self.wide)

    def scores(self, queries: Tensor, keys: Tensor, scale: float) -> Tensor:
        """Scaled, masked scores [batch, groups, rows, keys]."""
        scores = torch.matmul(queries, keys.mT).mul_(scale)
        if self.causal:
            rows = torch.arange(self.queries.start, self.queries.stop, device=self.device)
            columns = torch.arange(self.keys.stop, device=self.device)
            hidden = columns > rows[:, None] + self.shift
            scores.unflatten(2, (-1, len(rows))).masked_fill_(hidden, -torch.inf)
        if self.starts is not None:
            columns = torch.arange(self.keys.stop, device=self.device)
            before = columns < self.starts[:, None, None, :, None]
            scores.unflatten(2, (-1, before.shape[3])).masked_fill_(before, -torch.inf)
        return scores

    def store(self, target: Tensor, rows: Tensor) -> None:
        """Write rows back to the chunk of a q-like tensor."""
        count = self.queries.stop - self.queries.start
        target[:, :, self.queries] = rows.unflatten(2, (-1, count)).flatten(1, 2)


def _chunks(q: Tensor, k: Tensor, causal: bool, starts: Tensor | None) -> Iterator[_Chunk]:
    if q.numel() == 0:
        return
    queries = q.shape[2]
    step = max(1, _SCORES // (q.shape[0] * q.shape[1] * k.shape[2]))
    for first in range(0, queries, step):
        yield _Chunk(q, k, causal, starts, first, min(queries, first + step))


def _attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    causal: bool,
    starts: Tensor | None,
    out: tuple[Tensor, Tensor],
) -> None:
    for chunk in _chunks(q, k, causal, starts):
        scores = chunk.scores(chunk.rows(q), chunk.seen(k), scale)
        chunk.store(out[1].unsqueeze(-1), scores.logsumexp(dim=-1, keepdim=True))
        # Not exp(scores - lse), which would carry the rounding of a large lse into every weight.
        weights = scores.softmax(dim=-1)
        if starts is not None:
            weights.nan_to_num_()
        chunk.store(out[0], torch.matmul(weights, chunk.seen(v)))


def _grad_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    scale: float,
    causal: bool,
    starts: Tensor | None,
    out: tuple[Tensor, Tensor, Tensor],
) -> None:
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    total_k, total_v = (torch.zeros(k.shape, dtype=wide, device=k.device) for _ in range(2))
    for chunk in _chunks(q, k, causal, starts):
        queries, d_rows, keys = chunk.rows(q), chunk.rows(d_out), chunk.seen(k)
        sums = chunk.rows(lse.unsqueeze(-1))
        weights = chunk.scores(queries, keys, scale).sub_(sums).exp_()
        inner = (d_rows * chunk.rows(o)).sum(dim=-1, keepdim=True)
        d_scores = torch.matmul(d_rows, chunk.seen(v).mT).sub_(inner).mul_(weights).mul_(scale)
        chunk.store(out[0], torch.matmul(d_scores, keys))
        total_k[:, :, chunk.keys] += torch.matmul(d_scores.mT, queries)
        total_v[:, :, chunk.keys] += torch.matmul(weights.mT, d_rows)
    out[1].copy_(total_k)
    out[2].copy_(total_v)
