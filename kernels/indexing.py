"""Reading and writing at indices, where this rank may hold a stretch of the indexed dim only.

`start` is the global position at which the stretch begins. Positions outside it read as zero and
are not written. No result depends on the number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def take(table: Tensor, index: Tensor, start: int, out: Tensor) -> None:
    """out[m] = table[index[m] - start]: (table [rows, n], index [m], out [m, n])."""
    near, held = _held(index, start, table.shape[0])
    torch.index_select(table, 0, near, out=out)
    if index.device.type == "cpu":
        out.index_fill_(0, held.logical_not_().nonzero().view(-1), 0)
    else:
        out.masked_fill_(held.logical_not_()[:, None], 0)


def put_add(table: Tensor, index: Tensor, rows: Tensor, start: int) -> None:
    """table[index[m] - start] += rows[m]: (table [rows, n], index [m], rows [m, n]).

    Rows that meet are added in their order on the CPU, in any order on other devices.
    """
    near, held = _held(index, start, table.shape[0])
    if index.device.type != "cpu":
        rows = rows.masked_fill(held.logical_not_()[:, None], 0)
    elif not held.all():
        kept = held.nonzero().view(-1)
        near, rows = near.index_select(0, kept), rows.index_select(0, kept)
    # Measured for 64 to 32,000 rows: one-hot products and sorting by hand are slower on the CPU.
    table.index_add_(0, near, rows)


def pick(x: Tensor, index: Tensor, dim: int, start: int, out: Tensor) -> None:
    """out = x at index - start along dim; index broadcasts against out, which has the shape of x
    less that dim, then dims of which each position picks by itself."""
    near, held = _held(index, start, x.shape[dim])
    if out.dim() < x.dim():
        torch.gather(x, dim, near.expand(out.shape).unsqueeze(dim), out=out.unsqueeze(dim))
    else:
        last = x.movedim(dim, -1)
        several = near.expand(out.shape).reshape(*last.shape[:-1], -1)
        torch.gather(last, -1, several, out=out.view(several.shape))
    out.masked_fill_(held.logical_not_(), 0)


def spread(value: Tensor, index: Tensor, start: int, out: Tensor) -> None:
    """out[..., index - start] = value, zeros elsewhere; index broadcasts against value."""
    near, held = _held(index, start, out.shape[-1])
    out.zero_()
    kept = value.masked_fill(held.logical_not_(), 0)
    out.scatter_(-1, near.expand(value.shape).unsqueeze(-1), kept.unsqueeze(-1))


def _held(index: Tensor, start: int, count: int) -> tuple[Tensor, Tensor]:
    """The local positions, clamped to those held, and which of them are held (a fresh tensor)."""
    local = index - start if start else index
    near = local.clamp(0, count - 1)
    return near, near == local


def keep(x: Tensor, dim: int, positions: Sequence[range], out: Tensor) -> None:
    """The given stretches of a dim, one behind the other."""
    place = 0
    for stretch in positions:
        target = out.narrow(dim, place, len(stretch))
        target.copy_(x.narrow(dim, stretch.start, len(stretch)))
        place += len(stretch)
