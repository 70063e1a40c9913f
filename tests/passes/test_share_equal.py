"""share-equal: equal ops are merged, others are not."""

import math

from fllmc.ir.ops import Add, Cast, Fill, Mul
from fllmc.ir.program import Program
from fllmc.passes.inline import Inline
from fllmc.passes.share_equal import ShareEqual
from tests.passes.stack_programs import (
    DIMS,
    X,
    applied,
    builder,
    equal,
    model_program,
    training_program,
)


def test_merges_chains_and_keeps_the_first_path() -> None:
    b = builder("f")
    x = b.input("x", X)
    b.path = "first"
    one = b.one(Mul(), x, x)
    b.path = "second"
    two = b.one(Mul(), x, x)
    wide = b.cast(b.add(one, two), "f64")
    other = b.cast(b.add(one, one), "f64")
    before = Program("model", DIMS, (b.finish([wide, other], ["a", "b"]),), ("f",))
    after = applied(ShareEqual(), before)
    (function,) = after.functions
    assert [(op.attrs, op.path) for op in function.ops] == [
        (Mul(), "first"),
        (Add(), "second"),
        (Cast("f64"), "second"),
    ]
    assert function.results == (3, 3)
    equal(before, after, "f")


def test_signs_of_zero_and_order_of_operands_are_kept() -> None:
    b = builder("f")
    fills = [b.one(Fill(0.0)), b.one(Fill(-0.0)), b.one(Fill(0.0)), b.one(Fill(0.0, "f32"))]
    sums = [b.one(Add(), fills[0], fills[1]), b.one(Add(), fills[1], fills[0])]
    program = Program("model", DIMS, (b.finish([*fills, *sums], list("abcdef")),), ("f",))
    (function,) = applied(ShareEqual(), program).functions
    assert [math.copysign(1.0, op.attrs.value) for op in function.ops[:3]] == [1.0, -1.0, 1.0]  # type: ignore[union-attr]
    assert len(function.ops) == 5


def test_whole_programs() -> None:
    for entry, program in (
        ("model", applied(Inline(), model_program())),
        ("step", training_program()),
    ):
        after = applied(ShareEqual(), program)
        assert after == program
        equal(program, after, entry)
