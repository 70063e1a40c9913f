"""Hand-made programs for the passes of the plan level, and what they must keep."""

from __future__ import annotations

import numpy as np

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Sizes
from fllmc.ir.verify import verify
from fllmc.passes.base import Pass
from tests.codegen.running import CX, arguments, check, planned

SIZES = Sizes(
    {"batch": 2, "group": 3, "seq": 4, "key": 4, "embed": 6, "ffn": 5, "heads": 4}
    | {"kv_heads": 2, "head_dim": 2, "vocab": 7}
)


def builder() -> Builder:
    return Builder("main", SIZES)


def kept(program: Program, *steps: Pass, bits: bool = True) -> Program:
    """The program after the passes, which mean the same to the evaluator, and run as it says."""
    verify(program)
    after = program
    for step in steps:
        after = step.run(after, CX)
        verify(after)
    values = arguments(program, "main")
    wanted, found = evaluate(program, "main", values), evaluate(after, "main", values)
    for name, value in wanted.items():
        if bits:
            assert np.array_equal(found[name], value), name
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-13)
    check(planned(program, *steps))
    return after


def kinds(program: Program) -> list[str]:
    return [op.kind for op in program.function("main").ops]


def orders(program: Program) -> list[tuple[str, ...]]:
    """What the transposes of a program are to."""
    found = [op.attrs for op in program.function("main").ops]
    return [attrs.order for attrs in found if isinstance(attrs, ops.Transpose)]
