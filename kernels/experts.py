"""Mixtures of experts: choosing, the order of rows by expert, and products over runs of rows.

Shapes are of one rank: L sequences of S tokens with C choices each, E experts. Layouts and rules
are those of `fllmc/ir/ops/experts.py`. All results are the same at each run: of equal scores the
lower index is chosen, sorts are stable, and nothing is added in an order that may vary.
"""

from __future__ import annotations

import torch
from torch import Tensor


def top_k(x: Tensor, dim: int, out: tuple[Tensor, Tensor]) -> None:
    """The largest along dim and their positions: out is (values, indices), both [..., k]."""
    values, indices = out
    order = torch.sort(x.movedim(dim, -1), dim=-1, descending=True, stable=True)
    values.copy_(order.values[..., : values.shape[-1]])
    indices.copy_(order.indices[..., : values.shape[-1]])


def tally(index: Tensor, start: int, out: Tensor) -> None:
    """How often each of this rank's experts is chosen: (index [L, S * C], out [L, experts]).

    `start` is the number of the first of them.
    """
    near = index - start
    held = (near >= 0) & (near < out.shape[1])
    out.zero_().scatter_add_(1, near.clamp_(0, out.shape[1] - 1), held.to(out.dtype))


def seats(index: Tensor, experts: int, groups: int, slots: int) -> Tensor:
    """The row of each choice [L, S * C] among all rows of its sequence, or -1 if it has none.

    With `slots`, row expert * slots + n for the n-th choice of an expert; else groups of experts
    have S * C rows each, filled in the order of experts.
    """
    order = torch.argsort(index, dim=1, stable=True)
    place = torch.empty_like(order)
    steps = torch.arange(index.shape[1], device=index.device).expand_as(order)
    place.scatter_(1, order, steps)  # among all choices, by expert
    counts = index.new_zeros(index.shape[0], experts)
    counts.scatter_add_(1, index, torch.ones_like(index))
    starts = counts.cumsum(1) - counts
    if slots:
        number = place - starts.gather(1, index)
        return torch.where(number < slots, index * slots + number, -1)
    size = experts // groups
    group = torch.div(index, size, rounding_mode="floor")
    return place - starts[:, ::size].gather(1, group) + group * index.shape[1]


def dispatch(
    value: Tensor, index: Tensor, experts: int, groups: int, slots: int, start: int, out: Tensor
) -> None:
    """Rows of tokens by expert: (value [L, S or S * C, n], index [L, S * C], out [L, rows, n]).

    `start` is the number of the first row that this rank holds.
    """
    total, rows = index.shape[1], out.shape[1]
    near = seats(index, experts, groups, slots) - start
    held = (near >= 0) & (near < rows)
    # The choice that comes to each row; what this rank has no row for goes to one row more.
    comes = index.new_full((index.shape[0], rows + 1), -1)
    choices = torch.arange(total, device=index.device).expand_as(index)
    comes.scatter_(1, torch.where(held, near, rows), choices)
    comes = comes[:, :rows]
    token = torch.div(comes.clamp(min=0), total // value.shape[1], rounding_mode="floor")
    torch.gather(value, 1, token.unsqueeze(2).expand(out.shape), out=out)
    out.masked_fill_((comes < 0).unsqueeze(2), 0)


def combine(
    rows: Tensor, index: Tensor, experts: int, groups: int, slots: int, start: int, out: Tensor
) -> None:
    """Rows back to tokens: (rows [L, rows, n], index [L, S * C], out [L, S or S * C, n]).

    With S tokens the rows of a token's choices are added up, in their order.
    """
    near = seats(index, experts, groups, slots) - start
    held = (near >= 0) & (near < rows.shape[1])
    near.masked_fill_(~held, 0)
    each = index.shape[1] // out.shape[1]
    for choice in range(each):
        place = near[:, choice::each].unsqueeze(2).expand(out.shape)
        found = rows.gather(1, place).masked_fill_(~held[:, choice::each].unsqueeze(2), 0)
        if choice:
            out.add_(found)
        else:
            out.copy_(found)


def grouped_dot(rows: Tensor, weight: Tensor, counts: Tensor, out: Tensor) -> None:
    """Runs of rows by matrices: (rows [L, R, a], weight [E, a, b], counts [L, E], out [L, R, b]).

    Reads the counts, and so waits for the device that has made them.
    """
    for sequence, totals in enumerate(counts.tolist()):
        start = 0
        for expert, total in enumerate(totals):
            stop = start + total
            if total:
                run = out[sequence, start:stop]
                torch.mm(rows[sequence, start:stop], weight[expert], out=run)
            start = stop
        out[sequence, start:].zero_()


def grouped_outer(a: Tensor, b: Tensor, counts: Tensor, out: Tensor) -> None:
    """Sums of outer products: (a [L, R, m], b [L, R, n], counts [L, E], out [E, m, n]).

    Reads the counts, and so waits for the device that has made them.
    """
    out.zero_()
    for sequence, totals in enumerate(counts.tolist()):
        start = 0
        for expert, total in enumerate(totals):
            stop = start + total
            if total:
                left, right = a[sequence, start:stop], b[sequence, start:stop]
                out[expert].addmm_(left.t(), right)
            start = stop
