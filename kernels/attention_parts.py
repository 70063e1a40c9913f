"""Attention in parts: of some queries to some keys, put together by log-sum-exps.

Tensors are those of `attention.py`. Positions are given as stretches, in the order in which a
tensor holds them. Out of any key stretch, queries see what lies before theirs whole and their own
part under a causal mask, so that nothing is computed and then hidden, and no mask is stored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fllmc.kernels.attention import attend, attend_grad, sink_gradient, with_sinks
from fllmc.kernels.attention_scores import Rules, wide


class Sight(NamedTuple):
    """Local queries `rows` see local keys `columns`; `causal` where both are the same positions.

    `first` is the position of the first of these keys. Where `row` is given, it is the position of
    the first query among them, and the mask, the window and the bias follow from it.
    """

    rows: slice
    columns: slice
    causal: bool
    first: int = 0
    row: int | None = None


def sights(
    queries: Sequence[range],
    keys: Sequence[range],
    causal: bool,
    window: int = 0,
    distant: bool = False,
) -> list[Sight]:
    """What queries at these positions see of keys at those; every pair stands in one sight.

    `distant` says that scores depend on the distance of query and key.
    """
    if not (causal or window or distant):
        return [Sight(slice(0, _total(queries)), slice(0, _total(keys)), False)]
    found: list[Sight] = []
    row = 0
    for mine in queries:
        column = 0
        for theirs in keys:
            if window or distant:
                found += _near(mine, theirs, row, column, causal, window)
            else:
                found += _seen(mine, theirs, row - mine.start, column - theirs.start)
            column += len(theirs)
        row += len(mine)
    return found


def _near(
    queries: range, keys: range, row: int, column: int, causal: bool, window: int
) -> Iterator[Sight]:
    """The pair of stretches, whole, unless none of the keys can be seen."""
    if not (queries and keys) or (causal and keys.start >= queries.stop):
        return
    ahead, behind = keys.start - queries.stop + 1, queries.start - keys.stop + 1
    if window and max(ahead, behind) >= window:
        return
    rows, columns = slice(row, row + len(queries)), slice(column, column + len(keys))
    yield Sight(rows, columns, causal, keys.start, queries.start - keys.start)


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


def looks(rules: Rules, queries: Sequence[range], keys: Sequence[range]) -> list[Sight]:
    """The sights under these rules."""
    return sights(queries, keys, rules.causal, rules.window, rules.bias is not None)


def given(rules: Rules, sight: Sight) -> dict[str, Any]:
    """The rules as attention takes them for one sight."""
    starts = None if rules.starts is None else rules.starts[:, sight.rows] - sight.first
    return {**rules._asdict(), "causal": sight.causal, "first": sight.row, "starts": starts}


class Combined:
    """Attention of the queries to all keys that have been met so far."""

    def __init__(self, q: Tensor, width: int, rules: Rules) -> None:
        self.q, self.rules = q, rules
        kind = {"dtype": wide(q.dtype), "device": q.device}
        self.o = torch.zeros((*q.shape[:3], width), **kind)
        self.lse = torch.full(q.shape[:3], -torch.inf, **kind)

    def add(self, k: Tensor, v: Tensor, seen: Sequence[Sight]) -> None:
        """Let the queries see further keys: o = sum of o_i exp(lse_i - lse), over the parts i."""
        for sight in seen:
            rows, columns = sight.rows, sight.columns
            o, lse = self.o[:, :, rows], self.lse[:, :, rows]
            part = torch.empty_like(o), torch.empty_like(lse)
            keys, values = k[:, :, columns], v[:, :, columns]
            attend(self.q[:, :, rows], keys, values, **given(self.rules, sight), out=part)
            total = torch.logaddexp(lse, part[1])
            known = total.masked_fill(total == -torch.inf, 0.0)  # of queries that saw no key yet
            o.mul_((lse - known).exp_().unsqueeze(-1))
            o.addcmul_(part[0], (part[1] - known).exp_().unsqueeze(-1))
            lse.copy_(total)

    def store(self, out: tuple[Tensor, Tensor], sinks: Tensor | None) -> None:
        """Write the results, the sinks taken along."""
        o, lse = (self.o, self.lse) if sinks is None else with_sinks(self.o, self.lse, sinks)
        out[0].copy_(o)
        out[1].copy_(lse)


class Backward:
    """The gradients of the queries and the bias, from all keys that have been met so far."""

    def __init__(self, given: tuple[Tensor, Tensor, Tensor, Tensor], rules: Rules) -> None:
        self.q, self.o, self.lse, self.d_out = given
        self.rules = rules
        self.dq = torch.zeros(self.q.shape, dtype=wide(self.q.dtype), device=self.q.device)
        self.extras = [] if rules.bias is None else [self.dq.new_zeros(rules.bias.shape)]

    def add(self, k: Tensor, v: Tensor, seen: Sequence[Sight], into: tuple[Tensor, Tensor]) -> None:
        """Meet further keys; their gradients and those of values are added to `into`."""
        for sight in seen:
            rows, columns = sight.rows, sight.columns
            targets = (self.dq[:, :, rows], *(x[:, :, columns] for x in into), *self.extras)
            parts = tuple(torch.empty_like(x) for x in targets)
            q, o, lse, d_out = (x[:, :, rows] for x in (self.q, self.o, self.lse, self.d_out))
            keys, values = k[:, :, columns], v[:, :, columns]
            attend_grad(q, keys, values, o, lse, d_out, **given(self.rules, sight), out=parts)
            for target, part in zip(targets, parts, strict=True):
                target.add_(part)

    def store(self, out: tuple[Tensor, ...], sums: Sequence[Tensor], sinks: Tensor | None) -> None:
        """Write the results; `sums` are the gradients of keys and values."""
        among = [] if sinks is None else [sink_gradient(sinks, self.o, self.lse, self.d_out)]
        for target, value in zip(out, (self.dq, *sums, *among, *self.extras), strict=True):
            target.copy_(value)


def attend_part(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Sequence[range],
    *,
    scale: float,
    causal: bool,
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, Tensor],
) -> None:
    """attend, with the queries at these positions of the keys."""
    rules = Rules(scale, causal, window, cap, bias, origin, starts)
    found = Combined(q, v.shape[3], rules)
    found.add(k, v, looks(rules, positions, [range(k.shape[2])]))
    found.store(out, sinks)


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
    window: int = 0,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    bias: Tensor | None = None,
    origin: int = 0,
    starts: Tensor | None = None,
    out: tuple[Tensor, ...],
) -> None:
    """attend_grad, with the queries at these positions of the keys, so dk and dv of them all."""
    rules = Rules(scale, causal, window, cap, bias, origin, starts)
    found = Backward((q, o, lse, d_out), rules)
    kind = {"dtype": wide(k.dtype), "device": k.device}
    dk, dv = (torch.zeros(x.shape, **kind) for x in (k, v))
    found.add(k, v, looks(rules, positions, [range(k.shape[2])]), (dk, dv))
    found.store(out, (dk, dv), sinks)
