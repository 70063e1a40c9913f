"""Attention in parts: of some queries to some keys, put together by log-sum-exps.

Tensors are those of `attention.py`. Positions are given as stretches, in the order in which a
tensor holds them. Out of any key stretch, queries see what lies before theirs whole and their own
part under a causal mask, so that nothing is computed and then hidden, and no mask is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fllmc.kernels.attention import attend, attend_grad


class Sight(NamedTuple):
    """Local queries `rows` see local keys `columns`; `causal` where both are the same positions.

    `first` is the position of the first of these keys.
    """

    rows: slice
    columns: slice
    causal: bool
    first: int = 0


def sights(queries: Sequence[range], keys: Sequence[range], causal: bool) -> list[Sight]:
    """What queries at these positions see of keys at those; every pair stands in one sight."""
    if not causal:
        return [Sight(slice(0, _total(queries)), slice(0, _total(keys)), False)]
    found: list[Sight] = []
    row = 0
    for mine in queries:
        column = 0
        for theirs in keys:
            found += _seen(mine, theirs, row - mine.start, column - theirs.start)
            column += len(theirs)
        row += len(mine)
    return found


def _total(stretches: Sequence[range]) -> int:
    return sum(len(stretch) for stretch in stretches)


def _seen(queries: range, keys: range, row: int, column: int) -> Iterator[Sight]:
    """One stretch of queries and one of keys; `row` and `column` lead from positions to places."""
    first, last = max(queries.start, keys.start), min(queries.stop, keys.stop)

    def sight(rows: tuple[int, int], columns: tuple[int, int], causal: bool) -> Iterator[Sight]:
        if rows[0] < rows[1] and columns[0] < columns[1]:
            at, to = (rows[0] + row, rows[1] + row), (columns[0] + column, columns[1] + column)
            yield Sight(slice(*at), slice(*to), causal, columns[0])

    yield from sight((first, last), (keys.start, first), False)
    yield from sight((first, last), (first, last), True)
    yield from sight((max(queries.start, keys.stop), queries.stop), (keys.start, keys.stop), False)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which parts are added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Combined:
    """Attention of the queries to all keys that have been met so far."""

    def __init__(self, q: Tensor, scale: float, starts: Tensor | None = None) -> None:
        self.q, self.scale, self.starts = q, scale, starts
        kind = {"dtype": wide(q.dtype), "device": q.device}
        self.o = torch.zeros(q.shape, **kind)
        self.lse = torch.full(q.shape[:3], -torch.inf, **kind)

    def add(self, k: Tensor, v: Tensor, seen: Sequence[Sight]) -> None:
        """Let the queries see further keys: o = sum of o_i exp(lse_i - lse), over the parts i."""
        for sight in seen:
            rows, columns, causal, _ = sight
            o, lse = self.o[:, :, rows], self.lse[:, :, rows]
            part = torch.empty_like(o), torch.empty_like(lse)
            keys, values = k[:, :, columns], v[:, :, columns]
            starts = starts_in(self.starts, sight)
            given = {"scale": self.scale, "causal": causal, "starts": starts}
            attend(self.q[:, :, rows], keys, values, out=part, **given)
            total = torch.logaddexp(lse, part[1])
            # Where documents start, nothing may have been seen so far: -inf less -inf weighs 0.
            shares = [(each - total).exp_().nan_to_num_() for each in (lse, part[1])]
            o.mul_(shares[0].unsqueeze(-1))
            o.addcmul_(part[0], shares[1].unsqueeze(-1))
            lse.copy_(total)

    def store(self, out: tuple[Tensor, Tensor]) -> None:
        """Write the results."""
        out[0].copy_(self.o)
        out[1].copy_(self.lse)


def starts_in(starts: Tensor | None, sight: Sight) -> Tensor | None:
    """The first keys that the queries of a sight see, counted from the sight's first key."""
    return None if starts is None else starts[:, sight.rows] - sight.first


class Backward:
    """The gradient of the queries, from all keys that have been met so far."""

    def __init__(
        self,
        given: tuple[Tensor, Tensor, Tensor, Tensor],
        scale: float,
        starts: Tensor | None = None,
    ) -> None:
        self.q, self.o, self.lse, self.d_out = given
        self.scale, self.starts = scale, starts
        self.dq = torch.zeros(self.q.shape, dtype=wide(self.q.dtype), device=self.q.device)

    def add(self, k: Tensor, v: Tensor, seen: Sequence[Sight], into: tuple[Tensor, Tensor]) -> None:
        """Meet further keys; their gradients and those of values are added to `into`."""
        for sight in seen:
            rows, columns, causal, _ = sight
            targets = (self.dq[:, :, rows], *(x[:, :, columns] for x in into))
            parts = [torch.empty_like(x) for x in targets]
            q, o, lse, d_out = (x[:, :, rows] for x in (self.q, self.o, self.lse, self.d_out))
            keys, values = k[:, :, columns], v[:, :, columns]
            out = (parts[0], parts[1], parts[2])
            more = {"scale": self.scale, "causal": causal}
            more["starts"] = starts_in(self.starts, sight)
            attend_grad(q, keys, values, o, lse, d_out, out=out, **more)
            for target, part in zip(targets, parts, strict=True):
                target.add_(part)


def attend_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Sequence[range],
    *,
    scale: float,
    causal: bool,
    out: tuple[Tensor, Tensor],
    starts: Tensor | None = None,
) -> None:
    """attend, with the queries at these positions of the keys."""
    found = Combined(q, scale, starts)
    found.add(k, v, sights(positions, [range(k.shape[2])], causal))
    found.store(out)


def attend_part_grad(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    o: Tensor,
    lse: Tensor,
    d_out: Tensor,
    positions: Sequence[range],
    *,
    scale: float,
    causal: bool,
    out: tuple[Tensor, Tensor, Tensor],
    starts: Tensor | None = None,
) -> None:
    """attend_grad, with the queries at these positions of the keys, so dk and dv of them all."""
    found = Backward((q, o, lse, d_out), scale, starts)
    dk, dv = (torch.zeros(k.shape, dtype=wide(k.dtype), device=k.device) for _ in range(2))
    found.add(k, v, sights(positions, [range(k.shape[2])], causal), (dk, dv))
    for target, value in zip(out, (found.dq, dk, dv), strict=True):
        target.copy_(value)
