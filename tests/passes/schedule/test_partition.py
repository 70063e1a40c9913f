"""Cuts into stages are the best there are."""

from __future__ import annotations

from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.passes.schedule.partition import partition


@given(st.data())
def test_as_good_as_any_cut(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 8))
    costs = data.draw(st.lists(st.integers(0, 9), min_size=count, max_size=count))
    stages = data.draw(st.integers(1, count))
    cut = partition(costs, stages)
    assert cut[0] == 0 and cut[-1] == count and len(cut) == stages + 1
    assert all(begin < end for begin, end in pairwise(cut))
    largest = max(sum(costs[a:b]) for a, b in pairwise(cut))
    every = ((0, *inner, count) for inner in combinations(range(1, count), stages - 1))
    assert largest == min(max(sum(costs[a:b]) for a, b in pairwise(each)) for each in every)


def test_a_heavy_head_takes_layers_from_the_last_stage() -> None:
    assert partition([0.5, *[1.0] * 14, 3.0], 4) == (0, 3, 8, 13, 16)


def test_more_stages_than_units_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 units in 3 stages"):
        partition([1.0, 1.0], 3)
