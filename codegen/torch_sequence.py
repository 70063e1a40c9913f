"""Lowering of convolutions and recurrences to torch calls. All operands are read by views alone."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.views import matrix, shape_text
from fllmc.ir.ops import Conv, Recur, RecurGrad
from fllmc.ir.ops.convolution import conv_parts
from fllmc.ir.program import Op


def view(text: FunctionText, value: int, groups: Sequence[Sequence[str]]) -> str:
    """A view with one dim for each group of dims."""
    kind = text.function.types[value]
    return text.view(matrix(text.tensor(value), kind, text.sizes, groups))


def conv(text: FunctionText, op: Op, at: int) -> list[str]:
    """A convolution or one of its gradients."""
    del at
    attrs = op.attrs
    assert isinstance(attrs, Conv)
    values = (*op.operands, *op.results)
    parts = conv_parts(attrs, [text.function.types[value] for value in values])
    a, b, out = (view(text, value, part) for value, part in zip(values, parts, strict=True))
    windows = f"stride={shape_text(attrs.stride)}, before={shape_text(attrs.before)}"
    return [f"kernels.{attrs.kind}({a}, {b}, {windows}, out={out})"]


def recur(text: FunctionText, op: Op, at: int) -> list[str]:
    """A recurrence or its gradient."""
    del at
    attrs = op.attrs
    assert isinstance(attrs, Recur)
    orders = attrs.orders(text.function.types[op.operands[2]])
    along, heads, groups = [attrs.along], *([n] if n else [] for n in (attrs.heads, attrs.groups))
    key = (orders.rest, along, groups, [attrs.dim])
    value = (orders.rest, along, heads, [attrs.value])
    row: Sequence[Sequence[str]] = (orders.rest, along, heads, ())
    forms: list[Sequence[Sequence[str]]] = [key, key, value, row, row]
    backward = isinstance(attrs, RecurGrad)
    count = len(op.operands) - backward
    given = [view(text, v, form) for v, form in zip(op.operands[:count], forms, strict=False)]
    given[3:] = [f"{each}[..., 0]" for each in given[3:]]
    if not backward:
        out = view(text, op.results[0], value)
        return [f"kernels.recur({', '.join(given)}, out={out})"]
    given += ["None"] * (5 - count) + [view(text, op.operands[-1], value)]
    out = [view(text, v, form) for v, form in zip(op.results, forms, strict=False)]
    out[3:] = [text.view(f"{each}[..., 0]") for each in out[3:]]
    return [f"kernels.recur_grad({', '.join(given)}, out=({', '.join(out)}))"]
