"""Groups run tile by tile: the same numbers whatever the tiles, and whatever shares storage."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from fllmc.codegen import tiles
from fllmc.codegen.tiles import tile_rows
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Place
from fllmc.ir.program import Program
from fllmc.ir.types import Dim, Sizes, indices, tensor
from fllmc.passes.fuse import Fuse
from fllmc.passes.layout import Layout
from fllmc.runtime.executor import Executor
from tests.codegen.overlaps import faults
from tests.codegen.running import CX, arguments, check, hand_made, planned

SIZES = Sizes({"batch": 3, "seq": 7, "embed": 4, "key": 7, "vocab": 5})
X = tensor("f64", "batch", "seq", "embed")


def begun() -> tuple[Builder, int, int]:
    """A builder with two inputs alike, neither of which may be overwritten, and copies of them."""
    b = Builder("main", SIZES)
    x, y = b.input("x", X), b.input("y", X)
    return b, b.one(ops.Sin(), x), b.one(ops.Cos(), y)


def norm() -> Program:
    b, x, y = begun()
    scale = b.input("scale", tensor("f64", "embed"))
    mean = b.mul(b.sum(b.mul(x, x), ("embed",)), b.constant(0.25))
    return hand_made(b, [b.mul(b.mul(x, b.rsqrt(mean)), scale), b.add(x, y)])


def row_sums() -> Program:
    """Sums over all rows, beside values of every row, and a sum over some rows and a column."""
    b, x, y = begun()
    z = b.mul(x, y)
    total = b.sum(z, ("batch", "seq"))
    all_of_it = b.sum(z, ("batch", "seq", "embed"))
    return hand_made(b, [z, total, all_of_it, b.add(total, all_of_it), b.sum(z, ("batch",))])


def sums_of_sums() -> Program:
    """A row sum that is read by what could be in its own group."""
    b, x, y = begun()
    mean = b.sum(x, ("batch", "seq"))
    return hand_made(b, [b.sub(x, mean), b.sum(b.mul(y, mean), ("batch", "seq"))])


def broadcast_sum() -> Program:
    """`addn` whose first operands lack dims that the last one has."""
    b, x, y = begun()
    lean, row = b.sum(x, ("batch", "seq")), b.sum(y, ("embed",))
    one, two = b.constant(1.0), b.input("step", tensor("f64"), "host")
    added = b.one(ops.AddN(), lean, row, x)
    return hand_made(b, [added, b.one(ops.AddN(), one, two, x), b.one(ops.AddN(), one, x, y)])


def read_later() -> Program:
    """A dying operand with a result's layout, which the group still reads after writing it."""
    b, x, y = begun()
    early = b.add(x, y)
    late = b.sum(b.mul(x, early), ("embed",))
    return hand_made(b, [early, late])


def last_of_sum() -> Program:
    """The last operand of an `addn`, which is read after the sum has begun to be written."""
    b, x, y = begun()
    wide = b.one(ops.Transpose(("batch", "seq", "embed")), y)
    return hand_made(b, [b.one(ops.AddN(), b.neg(x), b.neg(wide), y, x)])


def same_twice() -> Program:
    b, x, _ = begun()
    return hand_made(b, [b.one(ops.AddN(), x, x, x), b.one(ops.AddN(), x)])


def renamed() -> Program:
    """A square matrix and itself transposed, by a renaming of its dims."""
    b = Builder("main", SIZES)
    a = b.one(ops.Sin(), b.input("a", tensor("f64", "seq", "key")))
    flipped = b.rename(a, {"seq": "key", "key": "seq"})
    total = b.add(a, flipped)
    return hand_made(b, [b.mul(total, total), b.sum(b.one(ops.Exp(), total), ("key",))])


def handed_on() -> Program:
    """A stopped value is an alias: it may not be overwritten while its result is to be copied."""
    b, x, y = begun()
    alias = b.one(ops.Stop(), x)
    other = b.exp(x)
    b_alias = b.one(ops.Stop(), y)
    return hand_made(b, [alias, other, b.add(other, b_alias), x, b_alias])


def picks() -> Program:
    b = Builder("main", SIZES)
    x = b.input("x", tensor("f64", "batch", "seq", "vocab"))
    targets = b.input("targets", indices("vocab", "batch", "seq"), "data")
    most = b.one(ops.ReduceMax(("vocab",)), x)
    total = b.one(ops.Log(), b.sum(b.exp(b.sub(x, most)), ("vocab",)))
    picked = b.one(ops.Pick("vocab"), x, targets)
    spread = b.one(ops.Spread(Dim("vocab")), b.sub(picked, total), targets)
    return hand_made(b, [b.add(picked, most), b.mul(spread, x), b.sum(spread, ("batch", "seq"))])


def inner_reductions() -> Program:
    """Reductions over the first dim and over a middle one: rows shrink, or there are none."""
    b, x, y = begun()
    middle = b.sum(b.mul(x, y), ("seq",))
    first = b.one(ops.ReduceMax(("batch",)), x)
    return hand_made(b, [b.add(middle, b.sum(y, ("seq",))), first, b.add(x, first), b.neg(middle)])


def conditions() -> Program:
    """Comparisons of tensors, of tensors with numbers, and of numbers alone."""
    b, x, y = begun()
    step, half = b.input("step", tensor("f64"), "host"), b.constant(0.5)
    chosen = b.one(ops.Where(), b.one(ops.Less(), x, y), x, half)
    clamped = b.one(ops.Maximum(), half, b.one(ops.Minimum(), y, b.constant(0.9)))
    late = b.one(ops.Where(), b.one(ops.Less(), half, step), y, b.sub(half, x))
    number = b.one(ops.Where(), b.one(ops.Less(), step, half), half, step)
    power = b.one(ops.Pow(), b.constant(2.0), b.div(half, chosen))
    return hand_made(b, [chosen, clamped, late, b.mul(number, x), power])


CASES: tuple[Callable[[], Program], ...] = (
    norm,
    row_sums,
    sums_of_sums,
    broadcast_sum,
    read_later,
    last_of_sum,
    same_twice,
    renamed,
    handed_on,
    picks,
    inner_reductions,
    conditions,
)


@pytest.mark.parametrize("elements", [1, 12, 1 << 16], ids="tile of {}".format)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_equals_the_evaluator(
    case: Callable[[], Program], elements: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", elements)
    made = planned(case())
    assert faults(made.plan) == []
    executor = Executor(made.plan, made.source)
    executor.arena[made.plan.frame_base :].fill_(0xFF)
    check(made, executor)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_fusing_keeps_every_bit(case: Callable[[], Program]) -> None:
    before = Layout().run(case(), CX)
    after = Fuse().run(before, CX)
    values = arguments(before, "main")
    wanted, found = evaluate(before, "main", values), evaluate(after, "main", values)
    assert [name for name in wanted if not np.array_equal(found[name], wanted[name])] == []


def test_a_dying_operand_is_overwritten() -> None:
    """What the group has read by the time it writes costs no buffer."""
    b, x, y = begun()
    made = planned(hand_made(b, [b.sum(b.exp(b.mul(x, y)), ("batch", "seq", "embed"))]))
    assert [f.bytes for f in made.plan.frames if f.function == "main"] <= [64 + 4096]


def test_what_only_the_group_uses_is_never_stored() -> None:
    made = planned(norm())
    (frame,) = [f for f in made.plan.frames if f.function == "main"]
    kept = {place for place in frame.places if place.kind == "frame"}
    assert kept == set(), "everything lives in tiles, inputs and results"
    fused = [f for f in made.plan.frames if f.tile_rows]
    assert fused
    assert any(place == Place("result", 0) for f in fused for place in f.places)


@pytest.mark.parametrize(("rows", "wanted"), [(10, 10), (128, 128), (129, 43), (1000, 63)])
def test_tiles_are_even(rows: int, wanted: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows if they fit in two tiles, else parts of the same size."""
    monkeypatch.setattr(tiles, "TILE_ELEMENTS", 64 * 4)
    sizes = Sizes({"batch": rows, "embed": 4})
    b = Builder("f", sizes)
    x = b.input("x", tensor("f64", "batch", "embed"))
    function = b.finish([b.exp(x)], ["y"])
    assert tile_rows(function, ("batch",), sizes) == wanted
