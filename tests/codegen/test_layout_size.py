"""How close layouts come to the bytes that are alive at once."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fllmc.codegen import figures
from fllmc.codegen.exact_offsets import exact_offsets
from fllmc.codegen.offsets import ORDERS, Item, height, live_bytes, offsets, placed
from fllmc.driver import compile_spec
from fllmc.ir.plan import ALIGNMENT
from tests.house.tree import ROOT

MODELS = sorted(path.stem for path in (ROOT / "specs" / "models").glob("*.fllm"))
FRAGMENTATION = 0.02
OTHERS = {name for name in MODELS if not name.startswith(("gpt2", "llama3", "quickstart", "tiny"))}
"""Models that resemble these so much that they are compiled in the long run."""

few = st.lists(
    st.builds(
        lambda start, length, size: Item(start, start + length, size * ALIGNMENT),
        st.integers(0, 8),
        st.integers(0, 4),
        st.integers(1, 9),
    ),
    min_size=1,
    max_size=5,
)


def apart(items: Sequence[Item], starts: list[int]) -> bool:
    return all(
        not a.meets(b) or starts[i] + a.bytes <= starts[j] or starts[j] + b.bytes <= starts[i]
        for i, a in enumerate(items)
        for j, b in enumerate(items)
        if i < j
    )


def least_by_trying(items: list[Item]) -> int:
    """The smallest total over all layouts. One of them lets items fall, in order of their offsets,
    as deep as they go, so all orders are tried."""
    best = sum(item.bytes for item in items)
    for order in permutations(items):
        starts: list[int] = []
        for number, item in enumerate(order):
            floors = [start + below.bytes for start, below in zip(starts, order, strict=False)]
            fits = (f for f in sorted({0, *floors}) if apart([*order[:number], item], [*starts, f]))
            starts.append(next(fits))
        best = min(best, height(order, starts))
    return best


@pytest.mark.parametrize("mesh", ["", "data=2,tensor=2", "8x4"])
@pytest.mark.parametrize(
    "model",
    [pytest.param(name, marks=pytest.mark.long if name in OTHERS else ()) for name in MODELS],
)
def test_what_ships_is_laid_out_with_hardly_a_gap(model: str, mesh: str) -> None:
    plan = compile_spec(model, mesh).plan
    for frame in plan.frames:
        assert frame.live_bytes <= frame.bytes <= (1 + FRAGMENTATION) * frame.live_bytes
    memory = figures.memory(plan)
    assert memory.least <= memory.arena <= (1 + FRAGMENTATION) * memory.least


@given(few)
def test_no_single_order_beats_the_layout(items: list[Item]) -> None:
    starts, total = offsets(items)
    assert apart(items, starts)
    for key in ORDERS:
        order = sorted(range(len(items)), key=lambda i: (*key(items[i]), i))
        assert total <= placed(items, order)[1]


@settings(max_examples=40, deadline=None)
@given(few)
def test_the_integer_program_finds_the_smallest_layout(items: list[Item]) -> None:
    known = placed(items, range(len(items)))
    starts, total = exact_offsets(items, known)
    assert apart(items, starts)
    assert total == height(items, starts) == least_by_trying(items)


def test_a_layout_for_which_orders_do_not_suffice_is_searched_for() -> None:
    """Found by chance: the best of all orders takes 22 units where 21 are alive."""
    rows = [(1, 2, 7), (4, 5, 9), (3, 3, 6), (2, 6, 6), (3, 7, 5), (8, 9, 3), (1, 3, 4)]
    items = [Item(start, stop, size * ALIGNMENT) for start, stop, size in rows]
    starts, total = offsets(items)
    assert apart(items, starts)
    assert total == live_bytes(items)


def test_the_same_items_give_the_same_layout() -> None:
    items = [Item(i % 7, i % 7 + i % 5, (1 + i * i % 11) * ALIGNMENT) for i in range(30)]
    assert offsets(items) == offsets(items)
