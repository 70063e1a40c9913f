"""Groups are acyclic, share rows, and keep every bit."""

from __future__ import annotations

from hypothesis import assume, given, settings
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.program import Function, Program
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Axis, Dim, Mesh, Sizes, Type, tensor
from fllmc.ir.verify import verify
from fllmc.passes.clusters import Clusters
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.fuse import Fuse
from fllmc.passes.layout import Layout
from fllmc.passes.sink_sums import SinkSums
from tests.codegen.overlaps import faults
from tests.codegen.running import CX, check, hand_made, planned
from tests.ir.programs import programs
from tests.passes.plan_programs import SIZES, builder, kept, kinds

X = tensor("f64", "batch", "seq", "embed")
EXAMPLES = max(1, settings().max_examples)


def fused(program: Program) -> list[Function]:
    """The groups of the program's entry, in order."""
    attrs = [op.attrs for op in program.function("main").ops]
    return [program.function(a.function) for a in attrs if isinstance(a, ops.Fused)]


def test_a_norm_is_one_group() -> None:
    b = builder()
    x, scale = b.input("x", X), b.input("scale", tensor("f64", "embed"))
    mean = b.sum(b.mul(x, x), ("embed",))
    y = b.mul(b.mul(x, b.rsqrt(mean)), scale)
    after = kept(hand_made(b, [y]), Layout(), Fuse())
    assert kinds(after) == ["fused"]
    assert [op.kind for op in fused(after)[0].ops] == ["mul", "sum", "rsqrt", "mul", "mul"]


def test_a_product_between_two_ops_parts_them() -> None:
    """exp -> dot -> add with what exp gave: one group would depend on itself."""
    b = builder()
    x = b.exp(b.input("x", X))
    y = b.one(ops.Dot(("embed",)), x, b.input("w", tensor("f64", "embed", "ffn")))
    back = b.one(ops.Dot(("ffn",)), y, b.input("v", tensor("f64", "ffn", "embed")))
    after = kept(hand_made(b, [b.mul(x, b.neg(back))]), Layout(), Fuse(), bits=False)
    assert kinds(after) == ["fused", "dot", "dot", "fused"]


def test_rows_that_are_placed_apart_are_groups_apart() -> None:
    """A divided scale's step and a whole gradient's sum share a number, not their rows."""
    b = Builder("main", Sizes(SIZES.dims, Mesh((Axis("data", 2),))))
    whole, part = Dim("embed"), Dim("embed", ("data",))
    norm = b.input("norm", tensor("f64"))
    x = b.mul(b.input("x", Type("f64", (whole,))), norm)
    y = b.mul(b.input("y", Type("f64", (part,))), norm)
    program = replace(hand_made(b, [x, y]), mesh=b.sizes.mesh, level="plan")
    after = Fuse().run(program, CX)
    verify(after)
    assert [group.types[-1].dims for group in fused(after)] == [(whole,), (part,)]


def test_a_row_sum_is_not_read_in_its_group() -> None:
    b = builder()
    x = b.exp(b.input("x", X))
    total = b.sum(x, ("batch", "seq"))
    after = kept(hand_made(b, [b.mul(x, total)]), Layout(), Fuse())
    assert [[op.kind for op in group.ops] for group in fused(after)] == [["exp", "sum"], ["mul"]]


def test_a_bias_without_the_rows_dims_joins() -> None:
    b = builder()
    x, bias = b.input("x", X), b.input("bias", tensor("f64", "embed"))
    after = kept(hand_made(b, [b.exp(b.add(x, bias))]), Layout(), Fuse())
    assert kinds(after) == ["fused"]


def test_rows_shrink_to_what_all_members_have() -> None:
    b = builder()
    x = b.exp(b.input("x", X))
    total = b.sum(x, ("seq",))
    after = kept(hand_made(b, [b.neg(total), x]), Layout(), Fuse())
    (group,) = [op.attrs for op in after.function("main").ops if isinstance(op.attrs, ops.Fused)]
    assert group.rows == ("batch",)


def test_host_scalars_stay_outside() -> None:
    b = builder()
    x, step = b.input("x", X), b.input("step", tensor("f64"), "host")
    rate = b.div(b.constant(1.0), b.exp(step))
    after = kept(hand_made(b, [b.mul(b.mul(x, rate), x)]), Layout(), Fuse())
    assert kinds(after)[-1] == "fused"
    (group,) = fused(after)
    assert [given.role for given in group.inputs].count("host") == 1


def test_a_row_too_wide_for_a_cache_is_not_fused() -> None:
    b = Builder("main", Sizes({**SIZES.dims, "ffn": 1 << 18}))
    x = b.input("x", tensor("f64", "batch", "ffn"))
    after = Fuse().run(Layout().run(hand_made(b, [b.exp(b.neg(x))]), CX), CX)
    assert [
        op.attrs.rows for op in after.function("main").ops if isinstance(op.attrs, ops.Fused)
    ] == [("batch", "ffn")]
    b = Builder("main", Sizes({**SIZES.dims, "ffn": 1 << 18}))
    x = b.input("x", tensor("f64", "batch", "ffn"))
    after = Fuse().run(Layout().run(hand_made(b, [b.sum(b.neg(x), ("ffn",))]), CX), CX)
    assert "sum" in kinds(after)


def test_clusters_stay_acyclic() -> None:
    b = builder()
    x = b.input("x", X)
    one, two = b.exp(x), b.neg(x)
    b.add(b.one(ops.Sin(), one), two)
    clusters = Clusters(b.finish([], []))
    a, c = clusters.start(0), clusters.start(1)
    between = clusters.start(2)
    assert not clusters.may_join(3, a)
    assert clusters.may_join(3, c)
    assert clusters.may_join(3, between)
    assert clusters.may_merge(a, c)
    clusters.join(3, c)
    assert not clusters.may_merge(a, c)
    assert [sorted(group) for group in clusters.order()] == [[0], [2], [1, 3]]


def f64(program: Program) -> Program:
    """The program with all floats in f64, at the level that `layout` takes."""
    text = print_program(program)
    for dtype in ("f32", "bf16", "f16"):
        text = text.replace(dtype, "f64")
    found = parse_program(text)
    assert isinstance(found, Program)
    return found


@settings(max_examples=EXAMPLES)
@given(programs())
def test_random_programs(program: Program) -> None:
    """Layout, sums and groups of whatever ops: the same to the evaluator and when run."""
    sharded = f64(program)
    # Indices that are looked up are plain numbers, which no float op takes.
    assume(all(k.index or k.dtype != "i64" for f in sharded.functions for k in f.types))
    made = planned(sharded, Layout(), SinkSums(), Fuse(), DropUnused())
    assert faults(made.plan) == []
    check(made)
