"""Lowering of a shift along a dim to torch calls."""

from __future__ import annotations

from fllmc.codegen.function_text import FunctionText
from fllmc.ir.ops import Shift
from fllmc.ir.program import Op


def shift(text: FunctionText, op: Op, at: int) -> list[str]:
    """A copy between stretches, and zeros around it."""
    del at
    assert isinstance(op.attrs, Shift)
    (x,), (out,) = op.operands, op.results
    place = text.function.types[x].names.index(op.attrs.dim)
    first, start, count = op.attrs.stretches(text.sizes)
    source, target = text.tensor(x), text.tensor(out)
    lines = [f"{target}.zero_()"] if count < text.sizes.size(op.attrs.to) else []
    if count:
        there = f"{target}.narrow({place}, {first}, {count})"
        lines.append(f"{there}.copy_({source}.narrow({place}, {start}, {count}))")
    return lines
