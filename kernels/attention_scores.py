"""The scores of some queries against the keys that they may see: scaled, capped, biased, masked."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Rules(NamedTuple):
    """What a score is and which keys a query sees, as `ir/ops/attention.py` defines it.

    `bias` is [heads, distances], `starts` [batch, queries] the first keys that are seen; `first` is
    the position of the first query among the keys.
    """

    scale: float
    causal: bool = False
    window: int = 0
    cap: float = 0.0
    bias: Tensor | None = None
    origin: int = 0
    starts: Tensor | None = None
    first: int = 0

    def at(self, first: int | None, q: Tensor, k: Tensor) -> Rules:
        """The rules for queries that begin there, or so that the last is at the last key."""
        return self._replace(first=k.shape[2] - q.shape[2] if first is None else first)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which scores are computed and parts are added up."""
    return torch.float64 if dtype == torch.float64 else torch.float32


class Chunk:
    """Some queries of all heads against the keys they see: rows are (heads of a group, queries)."""

    def __init__(self, q: Tensor, k: Tensor, rules: Rules, first: int, last: int) -> None:
        self.queries = slice(first, last)
        self.groups, self.rules, self.device = k.shape[1], rules, q.device
        self.at = rules.first + first
        behind = self.at + last - first  # the position behind the last query's
        low, high = 0, k.shape[2]
        if rules.causal:
            high = min(high, behind)
        if rules.window:
            low, high = max(0, self.at - rules.window + 1), min(high, behind - 1 + rules.window)
        high = max(0, high)
        self.keys = slice(min(low, high), high)
        self.wide = wide(q.dtype)

    def rows(self, x: Tensor) -> Tensor:
        """A q-like tensor's chunk in the wide dtype: [batch, groups, rows, dim]."""
        part = x[:, :, self.queries].to(self.wide)
        return part.unflatten(1, (self.groups, -1)).flatten(2, 3)

    def seen(self, x: Tensor) -> Tensor:
        """The seen part of a k-like tensor in the wide dtype."""
        return x[:, :, self.keys].to(self.wide)

    def per_row(self, x: Tensor) -> Tensor:
        """What each head has, [heads], for each row [groups, rows, 1]."""
        count = self.queries.stop - self.queries.start
        heads = x.to(self.wide).unflatten(0, (self.groups, -1))
        return heads.repeat_interleave(count, 1).unsqueeze(-1)

    def scores(self, queries: Tensor, keys: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scores [batch, groups, rows, keys], and the slope of the cap where there is one."""
        rules = self.rules
        scores, slope = torch.matmul(queries, keys.mT).mul_(rules.scale), None
        if rules.cap:
            share = scores.div_(rules.cap).tanh_()
            slope = 1.0 - share.square()
            scores = share.mul_(rules.cap)
        by_head = scores.unflatten(2, (-1, self.queries.stop - self.queries.start))
        if rules.bias is not None:
            by_head += self.biases(rules.bias).unflatten(0, (self.groups, -1))
        hidden = self.hidden()
        if hidden is not None:
            by_head.masked_fill_(hidden, -torch.inf)
        if rules.starts is not None:
            columns = torch.arange(self.keys.start, self.keys.stop, device=self.device)
            before = columns < rules.starts[:, self.queries, None]
            by_head.masked_fill_(before[:, None, None], -torch.inf)
        return scores, slope

    def hidden(self) -> Tensor | None:
        """Which keys each query does not see [queries, keys]; None if all are seen."""
        rules = self.rules
        if not (rules.causal or rules.window):
            return None
        rows = self.at + torch.arange(self.queries.stop - self.queries.start, device=self.device)
        columns = torch.arange(self.keys.start, self.keys.stop, device=self.device)
        ahead = columns - rows[:, None]
        if not rules.window:
            return ahead > 0
        far = ahead <= -rules.window
        return far | (ahead > 0 if rules.causal else ahead >= rules.window)

    def distances(self) -> tuple[int, int, int]:
        """(the last query's first key's place among the distances, how many queries, keys)."""
        rows, columns = (s.stop - s.start for s in (self.queries, self.keys))
        return self.keys.start - (self.at + rows - 1) + self.rules.origin, rows, columns

    def biases(self, bias: Tensor) -> Tensor:
        """The bias of each pair [heads, queries, keys]."""
        low, rows, columns = self.distances()
        span = bias[:, low : low + rows - 1 + columns].to(self.wide)
        if not columns:
            return span.new_zeros((bias.shape[0], rows, 0))
        return span.unfold(1, columns, 1).flip(1)

    def add_distances(self, scores: Tensor, total: Tensor) -> None:
        """Add what belongs to one distance to the total [heads, distances].

        With a row of n behind which m zeros stand read as rows of n + m - 1, each begins one
        further left than the one before, so that a column holds one distance.
        """
        low, rows, columns = self.distances()
        if not columns:
            return
        by_head = scores.sum(dim=0).unflatten(1, (-1, rows)).flatten(0, 1).flip(1)
        padded = torch.nn.functional.pad(by_head, (0, rows)).flatten(1)
        skewed = padded[:, : rows * (rows + columns - 1)].unflatten(1, (rows, -1))
        total[:, low : low + rows + columns - 1] += skewed.sum(dim=1)

    def store(self, target: Tensor, rows: Tensor) -> None:
        """Write rows back to the chunk of a q-like tensor."""
        count = self.queries.stop - self.queries.start
        target[:, :, self.queries] = rows.unflatten(2, (-1, count)).flatten(1, 2)
