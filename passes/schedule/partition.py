"""Cutting a chain of units into stages so that the slowest stage is as fast as can be.

Exact, by dynamic programming over prefixes: with `best[k][i]` the least largest stage of the first
i units in k stages, best[k][i] = min over j < i of max(best[k-1][j], cost(j, i)).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate


def partition(costs: Sequence[float], stages: int) -> tuple[int, ...]:
    """Where each stage begins and, at the end, the number of units: `stages` + 1 numbers.

    Every stage has a unit at least. Of equally good cuts, the one whose early stages are shortest:
    they keep most micro-batches. ValueError if there are fewer units than stages.
    """
    count = len(costs)
    if not 1 <= stages <= count:
        raise ValueError(f"{count} units in {stages} stages")
    sums = list(accumulate(costs, initial=0.0))
    bound = _least_largest(sums, stages)
    return _cut(sums, stages, bound)


def _least_largest(sums: Sequence[float], stages: int) -> float:
    """The cost of the largest stage of the best cut."""
    count = len(sums) - 1
    best = [sums[i] for i in range(count + 1)]
    for k in range(2, stages + 1):
        row = [float("inf")] * (count + 1)
        for i in range(k, count + 1):
            # best[j] grows with j and the last stage shrinks, so they cross once
            low, high = k - 1, i - 1
            while low < high:
                middle = (low + high) // 2
                if best[middle] >= sums[i] - sums[middle]:
                    high = middle
                else:
                    low = middle + 1
            row[i] = min(max(best[j], sums[i] - sums[j]) for j in (low, low - 1) if k - 1 <= j < i)
        best = row
    return best[count]


def _cut(sums: Sequence[float], stages: int, bound: float) -> tuple[int, ...]:
    """The cut from behind: each stage as long as the bound allows, none left without a unit."""
    slack = bound * (1 + 1e-12)
    ends = [len(sums) - 1]
    for left in range(stages - 1, 0, -1):
        first = bisect_left(sums, sums[ends[-1]] - slack)
        ends.append(max(left, min(first, ends[-1] - 1)))
    return (0, *reversed(ends)) if stages > 1 else (0, ends[0])
