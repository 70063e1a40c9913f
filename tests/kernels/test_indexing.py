"""Reading and writing at indices equals its meaning, whole and on each rank of a divided dim."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.ops import Pick, Put, Spread, Take
from fllmc.ir.types import Dim
from fllmc.kernels import torch_ops
from tests.kernels.meaning import Views, dtypes, exact, hold, kind, mean, seeds

ranks = st.sampled_from([(0, 1), (0, 3), (1, 3), (2, 3)])
VOCAB = Dim("vocab", ("tensor",))
SIZES = {"vocab": 12, "batch": 3, "seq": 5, "embed": 4}


def held(rank: tuple[int, int]) -> tuple[int, int]:
    """The number of vocabulary positions that the rank holds and the first of them."""
    count = SIZES["vocab"] // rank[1]
    return count, rank[0] * count


@given(ranks, dtypes, seeds)
def test_take(rank: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    views, (count, start) = Views(seed), held(rank)
    table, index = views.normal((count, 4), dtype), views.index((15,), 12)
    out = views.empty((15, 4), dtype)
    torch_ops.take(table, index, start, out)
    operands = [(kind("f64", "vocab@tensor embed"), table), (kind("i64", "seq", "vocab"), index)]
    (wanted,) = mean(Take("vocab"), {**SIZES, "seq": 15}, operands, rank)
    assert (exact(out) == wanted).all()


@given(ranks, dtypes, seeds)
def test_put_add(rank: tuple[int, int], dtype: torch.dtype, seed: int) -> None:
    views, (count, start) = Views(seed), held(rank)
    table, rows = views.normal((count, 4), dtype), views.normal((15, 4), dtype)
    index, before = views.index((15,), 12), exact(table).copy()
    near = index - start
    inside = (near >= 0) & (near < count)
    reference = table.contiguous().index_put((near[inside],), rows[inside], accumulate=True)
    torch_ops.put_add(table, index, rows, start)
    operands = [(kind("i64", "seq", "vocab"), index), (kind("f64", "seq embed"), rows)]
    (placed,) = mean(Put(VOCAB), {**SIZES, "seq": 15}, operands, rank)
    hold(table, before + placed, reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_many_rows_meet(dtype: torch.dtype) -> None:
    """The same bits again, and no more error than torch's own accumulation."""
    views = Views(3)
    rows, index = views.normal((4000, 64), dtype).contiguous(), views.index((4000,), 7)
    tables = [torch.zeros(7, 64, dtype=dtype) for _ in range(2)]
    for table in tables:
        torch_ops.put_add(table, index, rows, 0)
    assert torch.equal(*tables)
    wanted = torch.zeros(7, 64, dtype=torch.float64).index_add_(0, index, rows.double())
    reference = torch.zeros(7, 64, dtype=dtype).index_put((index,), rows, accumulate=True)
    hold(tables[0], wanted.numpy(), reference)


@given(ranks, dtypes, st.permutations(["batch", "vocab@tensor", "seq"]),
       st.sampled_from(["", "seq", "batch", "batch seq"]), seeds)  # fmt: skip
def test_pick(
    rank: tuple[int, int], dtype: torch.dtype, names: list[str], over: str, seed: int
) -> None:
    views, (count, start) = Views(seed), held(rank)
    sizes = {**SIZES, "vocab@tensor": count}
    rest = [name for name in names if name != "vocab@tensor"]
    x = views.normal([sizes[name] for name in names], dtype)
    own = [name for name in rest if name in over.split()]
    index = views.index([SIZES[name] for name in own], 12)
    shown = index.view([SIZES[name] if name in own else 1 for name in rest]) if own else index
    out = views.empty([SIZES[name] for name in rest], dtype)
    torch_ops.pick(x, shown, names.index("vocab@tensor"), start, out)
    operands = [(kind("f64", " ".join(names)), x), (kind("i64", " ".join(own), "vocab"), index)]
    (wanted,) = mean(Pick("vocab"), SIZES, operands, rank)
    assert (exact(out) == wanted).all()


@given(ranks, dtypes, st.sampled_from(["", "seq", "batch", "batch seq"]), seeds)
def test_spread(rank: tuple[int, int], dtype: torch.dtype, over: str, seed: int) -> None:
    views, (count, start) = Views(seed), held(rank)
    value = views.normal((3, 5), dtype)
    index = views.index([SIZES[name] for name in over.split()], 12)
    shown = index.view([SIZES[name] if name in over.split() else 1 for name in ("batch", "seq")])
    out = views.empty((3, 5, count), dtype)
    torch_ops.spread(value, shown, start, out)
    operands = [(kind("f64", "batch seq"), value), (kind("i64", over, "vocab"), index)]
    (wanted,) = mean(Spread(VOCAB), SIZES, operands, rank)
    assert (exact(out) == wanted).all()


def test_what_is_not_held_may_be_infinite() -> None:
    x, out, index = torch.full((2, 3), math.inf), torch.ones(2), torch.tensor([7, -7])
    torch_ops.pick(x, index, 1, 0, out)
    assert out.tolist() == [0.0, 0.0]
    torch_ops.spread(torch.full((2,), math.inf), index, 0, x)
    assert x.tolist() == [[0.0] * 3] * 2
    table = torch.zeros(3, 2)
    torch_ops.put_add(table, index, torch.full((2, 2), math.nan), 0)
    assert table.tolist() == [[0.0] * 2] * 3
