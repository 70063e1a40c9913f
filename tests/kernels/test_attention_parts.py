"""Attention in parts, and along a ring of ranks, is attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from queue import Queue
from threading import Thread

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fllmc.ir.types import Axis, Dim, Mesh, Sizes
from fllmc.kernels.attention import attend, attend_grad
from fllmc.kernels.attention_parts import Sight, attend_part, attend_part_grad, sights
from fllmc.kernels.ring_attention import ring_attend, ring_attend_grad

SEQ, RANKS = 48, 4
SHAPE_Q, SHAPE_K = (2, 4, SEQ, 8), (2, 2, SEQ, 8)
MARKS = ("", "~")


def dealt(mark: str, ranks: int = RANKS, size: int = SEQ) -> list[tuple[range, ...]]:
    """What each rank holds of a sequence."""
    sizes = Sizes({"seq": size}, Mesh((Axis("context", ranks),)))
    dim = Dim("seq", ("context" + mark,))
    return [sizes.stretches(dim, {"context": rank}) for rank in range(ranks)]


def places(stretches: Sequence[range]) -> list[int]:
    return [position for stretch in stretches for position in stretch]


def pairs(seen: Sequence[Sight]) -> list[tuple[int, int]]:
    """The (query, key) places of all sights, those hidden by a causal mask left out."""
    return [
        (row, column)
        for rows, columns, causal, *_ in seen
        for i, row in enumerate(range(rows.start, rows.stop))
        for j, column in enumerate(range(columns.start, columns.stop))
        if not causal or j <= i
    ]


@st.composite
def stretches(draw: st.DrawFn) -> list[range]:
    """Some stretches of 0 to 20, apart, in any order."""
    cuts = sorted(draw(st.lists(st.integers(0, 20), min_size=2, max_size=8, unique=True)))
    found = [range(a, b) for a, b in zip(cuts[::2], cuts[1::2], strict=False)]
    return list(draw(st.permutations(found)))


@given(stretches(), stretches(), st.booleans())
def test_every_visible_pair_is_in_one_sight(
    queries: list[range], keys: list[range], causal: bool
) -> None:
    found = pairs(sights(queries, keys, causal))
    expected = [
        (i, j)
        for i, query in enumerate(places(queries))
        for j, key in enumerate(places(keys))
        if key <= query or not causal
    ]
    assert sorted(found) == sorted(expected)


@pytest.mark.parametrize("ranks", [2, 4, 6])
def test_zigzag_is_equal_work_on_all_ranks(ranks: int) -> None:
    held = dealt("~", ranks)
    work = [len(pairs(sights(mine, [range(SEQ)], True))) for mine in held]
    assert len(set(work)) == 1 and sum(work) == SEQ * (SEQ + 1) // 2
    plain = [len(pairs(sights(mine, [range(SEQ)], True))) for mine in dealt("", ranks)]
    assert max(plain) > 1.4 * work[0]
    half = SEQ // ranks // 2
    for mine in held:  # of a ring, in each step
        steps = [len(pairs(sights(mine, theirs, True))) for theirs in held if theirs != mine]
        assert set(steps) == {2 * half * half}


def given_values(dtype: torch.dtype) -> list[Tensor]:
    """q, k, v and d_out."""
    torch.manual_seed(0)
    shapes = (SHAPE_Q, SHAPE_K, SHAPE_K, SHAPE_Q)
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


def first_keys() -> Tensor:
    """Where documents start, [batch, queries]: some within ranks' stretches, some across."""
    cuts = torch.tensor([[0, 5, 24, 25, SEQ], [0, 13, 30, 40, SEQ]])
    return torch.stack([torch.repeat_interleave(c[:-1], c.diff()) for c in cuts])


def whole(values: Sequence[Tensor], causal: bool, starts: Tensor | None = None) -> list[Tensor]:
    """o, lse, dq, dk and dv on one rank."""
    q, k, v, d_out = values
    wide = torch.promote_types(q.dtype, torch.float32)
    o, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide)
    attend(q, k, v, scale=0.3, causal=causal, out=(o, lse), starts=starts)
    grads = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    attend_grad(q, k, v, o, lse, d_out, scale=0.3, causal=causal, out=grads, starts=starts)
    return [o, lse, *grads]


def own(x: Tensor, held: Sequence[range]) -> Tensor:
    return x[:, :, places(held)].contiguous()


def check(
    found: Sequence[Tensor], values: Sequence[Tensor], causal: bool, starts: Tensor | None = None
) -> None:
    """The error is at most twice that of one rank in the same dtype, or 1e-12 in float64."""
    exact = whole([x.double() for x in values], causal, starts)
    for mine, theirs, expected in zip(found, whole(values, causal, starts), exact, strict=True):
        error, allowed = ((x.double() - expected).norm() for x in (mine, theirs))
        assert error <= max(2 * allowed, 1e-12 * expected.norm())


def joined(parts: Sequence[Tensor], held: Sequence[Sequence[range]]) -> Tensor:
    """The whole tensor, of the ranks' parts."""
    order = torch.tensor([at for stretches in held for at in places(stretches)])
    return torch.cat(list(parts), 2)[:, :, order.argsort()]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mark", MARKS)
@pytest.mark.parametrize("apart", [False, True])
def test_queries_of_each_rank_against_all_keys(apart: bool, mark: str, dtype: torch.dtype) -> None:
    values = given_values(dtype)
    q, k, v, d_out = values
    results: list[tuple[Tensor, ...]] = []
    sums = [torch.zeros(k.shape, dtype=torch.promote_types(dtype, torch.float32)) for _ in "kv"]
    for held in dealt(mark):
        mine, d_mine = own(q, held), own(d_out, held)
        found = torch.empty_like(mine), sums[0].new_empty(mine.shape[:3])
        starts = first_keys()[:, places(held)] if apart else None
        attend_part(mine, k, v, held, scale=0.3, causal=True, out=found, starts=starts)
        grads = torch.empty_like(mine), torch.empty_like(k), torch.empty_like(v)
        more = {"scale": 0.3, "causal": True, "starts": starts}
        attend_part_grad(mine, k, v, *found, d_mine, held, out=grads, **more)
        results.append((*found, grads[0]))
        for total, part in zip(sums, grads[1:], strict=True):
            total.add_(part)
    rows = [joined(parts, dealt(mark)) for parts in zip(*results, strict=True)]
    check([*rows, *sums], values, True, first_keys() if apart else None)


class Threads:
    """A ring whose ranks are threads."""

    def __init__(self, position: int, boxes: Sequence[dict[int, Queue[Tensor]]]) -> None:
        self.position, self.size, self.boxes = position, len(boxes), boxes

    def pass_on(self, send: Tensor, receive: Tensor, tag: int) -> Callable[[], None]:
        self.boxes[(self.position + 1) % self.size][tag].put(send.clone())
        return partial(self._take, receive, tag)

    def _take(self, receive: Tensor, tag: int) -> None:
        receive.copy_(self.boxes[self.position][tag].get(timeout=30))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("causal", "apart"), [(True, False), (False, False), (True, True)])
@pytest.mark.parametrize("mark", MARKS)
def test_a_ring_of_ranks(mark: str, causal: bool, apart: bool, dtype: torch.dtype) -> None:
    values = given_values(dtype)
    held = dealt(mark)
    boxes: list[dict[int, Queue[Tensor]]] = [{0: Queue(), 1: Queue()} for _ in held]
    results: dict[int, tuple[Tensor, ...]] = {}

    def rank(position: int) -> None:
        ring = Threads(position, boxes)
        q, k, v, d_out = (own(x, held[position]) for x in values)
        sums, size = torch.promote_types(dtype, torch.float32), k.numel() + v.numel()
        blocks, grads = k.new_empty((2, size)), k.new_empty((3, size), dtype=sums)
        found = torch.empty_like(q), torch.empty(q.shape[:3], dtype=sums)
        more = {"scale": 0.3, "causal": causal}
        if apart:
            more["starts"] = first_keys()[:, places(held[position])]
        ring_attend(ring, q, k, v, held, blocks, out=found, **more)
        back = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        rest = (*found, d_out, held, blocks, grads)
        ring_attend_grad(ring, q, k, v, *rest, out=back, **more)
        results[position] = (*found, *back)

    threads = [Thread(target=rank, args=(position,)) for position in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    parts = [results[position] for position in range(RANKS)]
    starts = first_keys() if apart else None
    check([joined(part, held) for part in zip(*parts, strict=True)], values, causal, starts)
