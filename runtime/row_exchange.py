"""Rows to the ranks of their experts and back: an all-to-all of as many as there are.

How many rows go where follows from the choices of all tokens of the group, which each rank has. The
library wants these numbers on the host, so an exchange waits once for the device that has made the
choices. Buffers have room for all rows that may come.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

AllToAll = Callable[[Tensor, Tensor, list[int], list[int]], None]
"""(received, sent, rows from each rank, rows to each rank)."""


class Routes(NamedTuple):
    """Where rows are: at their tokens, packed, and at their experts, in room for all choices.

    `near` are the packed rows of this rank by the rank that they go to, `far` the rows of its
    experts by the rank that they come from; `to` and `come` are how many of each.
    """

    near: Tensor
    far: Tensor
    to: list[int]
    come: list[int]


def routes(index: Tensor, experts: int, ranks: int, position: int) -> Routes:
    """The routes of one rank, from the choices [sequences of all ranks, choices]."""
    sequences, room = index.shape
    owner = torch.div(index, experts // ranks, rounding_mode="floor")
    counts = index.new_zeros(sequences, ranks)
    counts.scatter_add_(1, owner, torch.ones_like(owner))
    own = sequences // ranks
    mine = slice(position * own, (position + 1) * own)
    both = torch.stack((counts[mine].sum(0), counts[:, position].view(ranks, own).sum(1)))
    to, come = both.tolist()
    near = torch.argsort(owner[mine].sort(dim=1).values.flatten(), stable=True)
    unused = torch.arange(room, device=index.device) >= counts[:, position].unsqueeze(1)
    far = torch.argsort(unused.flatten().to(torch.uint8), stable=True)[: sum(come)]
    return Routes(near, far, to, come)


def exchange_rows(
    move: AllToAll,
    given: Tensor,
    index: Tensor,
    experts: int,
    position: int,
    back: bool,
    out: Tensor,
    scratch: Tensor,
) -> int:
    """Rows [sequences, rows, columns] to `out`; the number of rows that this rank has sent.

    `scratch` has room for as many elements as `given` and `out` together.
    """
    ranks = index.shape[0] // (out if back else given).shape[0]
    there = routes(index, experts, ranks, position)
    taken, put = (there.far, there.near) if back else (there.near, there.far)
    to, come = (there.come, there.to) if back else (there.to, there.come)
    columns = given.shape[2]
    sent, left = cut(scratch, len(taken), columns)
    received, _ = cut(left, len(put), columns)
    torch.index_select(given.flatten(0, 1), 0, taken, out=sent)
    move(received, sent, come, to)
    if not back:
        out.zero_()
    out.view(-1, columns).index_copy_(0, put, received)
    return len(taken)


def cut(scratch: Tensor, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """So many rows of a buffer, and what is left of it."""
    count = rows * columns
    return scratch[:count].view(rows, columns), scratch[count:]
