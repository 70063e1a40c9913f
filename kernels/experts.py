"""Mixtures of experts: choosing, the order of rows by expert, and products over runs of rows.

Shapes are of one rank: L sequences of S tokens with C choices each, E experts. Layouts and rules
are those of `fllmc/ir/ops/experts.py`. All results are the same at each run: of equal scores the
lower index is chosen, sorts are stable, and nothing is added in an order that may vary.
"""

from __future__ import annotations

import torch
from torch import Tensor

EACH = 8
"""The call for many runs may read them by 16 bytes, eight bf16, so each begins at such a place."""


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


def by_expert(index: Tensor, experts: int, start: int, rows: int) -> tuple[Tensor, Tensor]:
    """(the rows of all sequences in the order of experts [L * R], where each expert's end [E]).

    `start` is the number of the first of `experts`, `rows` the room that each sequence has. Rows
    that are not in use come last.
    """
    counts = index.new_empty(index.shape[0], experts)
    tally(index, start, counts)
    places = torch.arange(rows, device=index.device).expand(index.shape[0], rows).contiguous()
    owner = torch.searchsorted(counts.cumsum(1), places, right=True)
    return torch.argsort(owner.flatten(), stable=True), counts.sum(0).cumsum(0)


def spread_out(order: Tensor, ends: Tensor) -> tuple[Tensor, Tensor]:
    """(where rows in this order stand if each expert's begin at a multiple of EACH, their ends).

    Rows that are not in use all stand in one place behind.
    """
    starts = torch.cat((ends.new_zeros(1), ends[:-1]))
    room = torch.div(ends - starts + EACH - 1, EACH, rounding_mode="floor") * EACH
    stops = room.cumsum(0)
    numbers = torch.arange(len(order), device=order.device)
    owner = torch.searchsorted(ends, numbers, right=True).clamp_(max=len(ends) - 1)
    places = numbers - starts[owner] + (stops - room)[owner]
    last = len(order) + EACH * len(ends)
    return torch.where(numbers < ends[-1], places, last), stops


def on_tensor_cores(x: Tensor, *widths: int) -> bool:
    """Whether torch has one call for products of many runs: no width may be odd in 16 bytes."""
    return x.is_cuda and x.dtype == torch.bfloat16 and all(width % 8 == 0 for width in widths)


def grouped_mm(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """torch's product of runs, whose ends stay on the device; public since torch 2.10."""
    call = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    return call(a, b, offs=ends.to(torch.int32))


def grouped_dot(rows: Tensor, weight: Tensor, index: Tensor, start: int, out: Tensor) -> None:
    """Runs of rows by matrices: (rows [L, R, a], weight [E, a, b], index [L, T], out [L, R, b]).

    `start` is the number of the first expert. With torch's grouped product nothing waits for the
    device; else the runs' ends are read.
    """
    order, ends = by_expert(index, weight.shape[0], start, rows.shape[1])
    given, result = rows.flatten(0, 1), out.view(-1, out.shape[2])
    if on_tensor_cores(rows, *weight.shape[1:]):
        through_one_call(given, weight, order, ends, result)
        return
    out.zero_()
    for expert, mine in enumerate(runs(order, ends)):
        if len(mine):
            result.index_copy_(0, mine, given.index_select(0, mine) @ weight[expert])


def through_one_call(
    rows: Tensor, weight: Tensor, order: Tensor, ends: Tensor, out: Tensor
) -> None:
    """Rows, packed in this order, by matrices, and back."""
    places, stops = spread_out(order, ends)
    found = grouped_mm(packed(rows, order, places, len(ends)), weight, stops)
    unused = torch.arange(len(order), device=order.device) >= ends[-1]
    back = found.index_select(0, places).masked_fill_(unused.unsqueeze(1), 0)
    out.index_copy_(0, order, back)


def packed(rows: Tensor, order: Tensor, places: Tensor, experts: int) -> Tensor:
    """Rows in this order at their places, zeros between."""
    room = len(order) + EACH * (experts + 1)
    return rows.new_zeros(room, rows.shape[1]).index_copy_(0, places, rows.index_select(0, order))


def grouped_outer(a: Tensor, b: Tensor, index: Tensor, start: int, out: Tensor) -> None:
    """Sums of outer products: (a [L, R, m], b [L, R, n], index [L, T], out [E, m, n]).

    As `grouped_dot` otherwise.
    """
    order, ends = by_expert(index, out.shape[0], start, a.shape[1])
    left, right = a.flatten(0, 1), b.flatten(0, 1)
    if on_tensor_cores(a, *out.shape[1:]):
        out.copy_(sums_in_one_call(left, right, order, ends))
        return
    for expert, mine in enumerate(runs(order, ends)):
        rows, columns = left.index_select(0, mine), right.index_select(0, mine)
        torch.mm(rows.t(), columns, out=out[expert])


def sums_in_one_call(a: Tensor, b: Tensor, order: Tensor, ends: Tensor) -> Tensor:
    """The sums of outer products of rows, packed in this order."""
    places, stops = spread_out(order, ends)
    left, right = (packed(rows, order, places, len(ends)) for rows in (a, b))
    return grouped_mm(left.t(), right, stops)


def runs(order: Tensor, ends: Tensor) -> tuple[Tensor, ...]:
    """The rows of each expert. Reads their ends, and so waits for the device."""
    stops = ends.tolist()
    return tuple(order[a:b] for a, b in zip([0, *stops[:-1]], stops, strict=True))
