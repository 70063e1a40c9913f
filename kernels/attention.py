"""Attention with grouped heads, forward and backward, into given views.

Shapes: q and its gradient [batch, heads, queries, dim]; k and its [batch, groups, keys, dim]; v and
its [batch, groups, keys, value]; o and its [batch, heads, queries, value]; lse [batch, heads,
queries], the natural log-sum-exp of the scores, float32 (float64 for float64); sinks [heads]; bias
[heads, distances]; starts [batch, queries], the first key that each query sees. Head h uses group
h // (heads / groups). What a score is, and which keys a query sees, `ir/ops/attention.py` defines;
the first query stands at position `first` of the keys, by default so that the last query stands at
the last key. On the CPU PyTorch's blocked kernel does the work where it can; else it goes through
the scores of some queries and the keys that they see at a time, which bounds memory. Sums are in
float32 at least.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fllmc.kernels.attention_scores import Chunk, Rules, wide

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
_FLASH_GRAD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default

_SCORES = 1 << 26  # score elements held at once by the plain path: 256 MiB in float32
_LEAST = 64  # queries at once under a window that is narrower


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    scale: float,
    causal: bool,
    window: int = 0,
    cap: float = 0.0,
    first: int | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, Tensor],
) -> None:
    """(o, lse) = softmax(scores) v and the log-sum-exp of the scores.

    Where queries see no key, o is 0 and lse minus infinity, or the sink.
    """
    rules = Rules(scale, causal, window, cap, bias, origin, starts).at(first, q, k)
    if _blocked(q, k, v, rules):
        o, lse = _FLASH(_packed(q), _packed(k), _packed(v), 0.0, causal, scale=scale)
        if sinks is not None:
            o, lse = with_sinks(o.to(lse.dtype), lse, sinks)
        out[0].copy_(o)
        out[1].copy_(lse)
    else:
        _attend_plain(q, k, v, rules, sinks, out)


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
    window: int = 0,
    cap: float = 0.0,
    first: int | None = None,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, ...],
) -> None:
    """(dq, dk, dv, and those of sinks and bias where given) of attend, from its results.

    FlashAttention-2 (Dao 2023), section 3.1: P = exp(scores - lse), D = sum(d_out * o),
    dS = P * (d_out v^T - D). A sink's weight is exp(sink - lse), so its gradient is -D times that.
    """
    rules = Rules(scale, causal, window, cap, bias, origin, starts).at(first, q, k)
    if sinks is not None:
        out[3].copy_(sink_gradient(sinks, o, lse, d_out))
    if not _blocked(q, k, v, rules):
        _grad_plain(q, k, v, o, lse, d_out, rules, out)
    elif q.shape[1] == k.shape[1] or q.dtype in (torch.float32, torch.float64):
        given = [_packed(x) for x in (d_out, q, k, v, o)]
        found = _FLASH_GRAD(*given, lse, 0.0, causal, scale=scale)
        for target, value in zip(out, found, strict=False):
            target.copy_(value)
    else:
        _grad_groups(q, k, v, o, lse, d_out, scale, causal, out)


def with_sinks(o: Tensor, lse: Tensor, sinks: Tensor) -> tuple[Tensor, Tensor]:
    """Attention with one more score for each head whose weight goes nowhere, from that without."""
    total = torch.logaddexp(lse, sinks.to(lse.dtype)[:, None])
    return o * (lse - total).exp_().unsqueeze(-1), total


def sink_gradient(sinks: Tensor, o: Tensor, lse: Tensor, d_out: Tensor) -> Tensor:
    """The gradient [heads] of the sinks."""
    total = torch.zeros(sinks.shape, dtype=lse.dtype, device=lse.device)
    for each_o, each_lse, each_d in zip(o, lse, d_out, strict=True):
        inner = (each_o.to(lse.dtype) * each_d.to(lse.dtype)).sum(dim=-1)
        total -= ((sinks.to(lse.dtype)[:, None] - each_lse).exp_() * inner).sum(dim=-1)
    return total


def _blocked(q: Tensor, k: Tensor, v: Tensor, rules: Rules) -> bool:
    """Whether PyTorch's CPU kernel takes the operands; it aligns its causal mask at the top."""
    given = rules.bias is not None or rules.starts is not None
    plain = not (rules.window or rules.cap or given)
    aligned = not rules.causal or (rules.first == 0 and q.shape[2] == k.shape[2])
    fits = q.device.type == "cpu" and q.shape[3] == v.shape[3] and k.shape[2] > 0
    return fits and plain and aligned and q.numel() > 0


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
    out: tuple[Tensor, ...],
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


def _chunks(q: Tensor, k: Tensor, rules: Rules) -> Iterator[Chunk]:
    """Some queries at a time: under a window about as many as that is wide."""
    if q.numel() == 0:
        return
    queries, keys = q.shape[2], k.shape[2]
    if rules.window:
        keys = min(keys, 2 * max(rules.window, _LEAST) + rules.window)
    step = max(1, _SCORES // (q.shape[0] * q.shape[1] * max(1, keys)))
    if rules.window:
        step = min(step, max(rules.window, _LEAST))
    for first in range(0, queries, step):
        yield Chunk(q, k, rules, first, min(queries, first + step))


def _attend_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rules: Rules,
    sinks: Tensor | None,
    out: tuple[Tensor, Tensor],
) -> None:
    for chunk in _chunks(q, k, rules):
        scores, _ = chunk.scores(chunk.rows(q), chunk.seen(k))
        sums = scores.logsumexp(dim=-1, keepdim=True)
        # Not exp(scores - lse), which would carry the rounding of a large lse into every weight.
        weights = scores.softmax(dim=-1).masked_fill_(sums == -torch.inf, 0.0)
        o = torch.matmul(weights, chunk.seen(v))
        if sinks is not None:
            sink = chunk.per_row(sinks)
            total = torch.logaddexp(sums, sink)
            o, sums = o.mul_((sums - total).exp_()), total
        chunk.store(out[1].unsqueeze(-1), sums)
        chunk.store(out[0], o)


def _grad_plain(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    rules: Rules,
    out: tuple[Tensor, ...],
) -> None:
    kind = {"dtype": wide(q.dtype), "device": k.device}
    total_k, total_v = (torch.zeros(x.shape, **kind) for x in (k, v))
    total_bias = None if rules.bias is None else torch.zeros(rules.bias.shape, **kind)
    for chunk in _chunks(q, k, rules):
        queries, d_rows, keys = chunk.rows(q), chunk.rows(d_out), chunk.seen(k)
        sums = chunk.rows(lse.unsqueeze(-1))
        scores, slope = chunk.scores(queries, keys)
        weights = scores.sub_(sums).exp_()
        inner = (d_rows * chunk.rows(o)).sum(dim=-1, keepdim=True)
        d_scores = torch.matmul(d_rows, chunk.seen(v).mT).sub_(inner).mul_(weights)
        if total_bias is not None:
            chunk.add_distances(d_scores, total_bias)
        d_scores.mul_(rules.scale if slope is None else slope.mul_(rules.scale))
        chunk.store(out[0], torch.matmul(d_scores, keys))
        total_k[:, :, chunk.keys] += torch.matmul(d_scores.mT, queries)
        total_v[:, :, chunk.keys] += torch.matmul(weights.mT, d_rows)
    out[1].copy_(total_k)
    out[2].copy_(total_v)
    if total_bias is not None:
        out[-1].copy_(total_bias)
