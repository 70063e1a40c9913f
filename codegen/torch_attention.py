"""Lowering of attention and rotary positions to torch calls, whole or along a divided sequence."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.views import matrix, quoted, shape_text
from fllmc.ir.ops import Attend, AttendGrad, RingAttend, RingAttendGrad, Rope
from fllmc.ir.program import Op
from fllmc.ir.types import Dim


def positions(text: FunctionText, dim: Dim) -> str:
    """The stretches of a dim that this rank holds."""
    if not dim.axes:
        return f"(range({text.sizes.size(dim.name)}),)"
    return text.view(f"rt.stretches({quoted(dim.name)}, {dim.axes!r})")


def heads_first(text: FunctionText, value: int, order: tuple[str, ...]) -> str:
    """A [batch, heads, along, dim] view (without dim for the log-sum-exp)."""
    kind = text.function.types[value]
    batch = [name for name in kind.names if name not in order]
    groups = [batch, *([name] for name in order if name in kind.names)]
    if batch:
        return text.view(matrix(text.tensor(value), kind, text.sizes, groups))
    permuted = [kind.names.index(name) for name in order if name in kind.names]
    return text.view(f"{text.tensor(value)}.permute({shape_text(permuted)}).unsqueeze(0)")


def views(text: FunctionText, op: Op, attrs: Attend) -> tuple[list[str], list[str]]:
    """Views of the operands and of the results."""
    q = (attrs.heads, attrs.along, attrs.dim)
    k = (attrs.kv_heads, attrs.over, attrs.dim)
    backward = isinstance(attrs, AttendGrad)
    orders: Sequence[tuple[str, ...]] = [q, k, k, q, q, q] if backward else [q, k, k]
    own = op.operands[: attrs.tensors]
    given = [heads_first(text, v, o) for v, o in zip(own, orders, strict=True)]
    results = zip(op.results, [q, k, k] if backward else [q, q], strict=True)
    return given, [heads_first(text, v, o) for v, o in results]


def options(text: FunctionText, op: Op, attrs: Attend, out: Sequence[str]) -> str:
    """The keyword arguments that all have, and where documents start: [batch, along]."""
    starts = ""
    if attrs.documents:
        value = op.operands[-1]
        kind = text.function.types[value]
        batch = [name for name in kind.names if name != attrs.along]
        view = matrix(text.tensor(value), kind, text.sizes, [batch, [attrs.along]])
        starts = f"starts={text.view(view)}, "
    given = f"scale={attrs.scale!r}, causal={attrs.mask == 'causal'}"
    return f"{given}, {starts}out=({', '.join(out)})"


def attend(text: FunctionText, op: Op, at: int) -> list[str]:
    """Attention forward or backward by the kernel family's torch side."""
    del at
    assert isinstance(op.attrs, Attend)
    attrs = op.attrs
    given, out = views(text, op, attrs)
    suffix = "_grad" if isinstance(attrs, AttendGrad) else ""
    along = text.function.types[op.operands[0]].dim(attrs.along)
    stop = attrs.first + text.sizes.size(attrs.along)
    if attrs.mask == "causal" and (along.axes or stop < text.sizes.size(attrs.over)):
        held = positions(text, along)
        if attrs.first:
            held = text.view(f"rt.moved({held}, {attrs.first})")
        given = [*given, held]
        suffix = f"_part{suffix}"
    more = options(text, op, attrs, out)
    return [f"kernels.attend{suffix}({', '.join(given)}, {more})"]


def ring_attend(text: FunctionText, op: Op, at: int) -> list[str]:
    """Attention whose keys and values go round, with room for those on their way."""
    attrs = op.attrs
    assert isinstance(attrs, RingAttend)
    given, out = views(text, op, attrs)
    kind = text.function.types[op.operands[1]]
    held = text.view(f"rt.held({quoted(attrs.along)}, {attrs.axes!r})")
    offset = f"{text.offset(at, 0)}"
    shape = f"{given[1]}.shape"
    blocks = text.view(f"rt.view({quoted(kind.dtype)}, {offset}, (2, 2, *{shape}))")
    site = text.sites[text.function.name, at]
    rest = f"{held}, {blocks}"
    name = "ring_attend"
    if isinstance(attrs, RingAttendGrad):
        sums = "f64" if kind.dtype == "f64" else "f32"
        grads = text.view(f"rt.view({quoted(sums)}, {text.offset(at, 1)}, (3, 2, *{shape}))")
        name, rest = "ring_attend_grad", f"{rest}, {grads}"
    more = options(text, op, attrs, out)
    return [f"rt.{name}({site}, {', '.join(given)}, {rest}, {more})"]


def rope(text: FunctionText, op: Op, at: int) -> list[str]:
    """Rotation by a table of cosines and sines that is bound once."""
    del at
    assert isinstance(op.attrs, Rope)
    attrs = op.attrs
    kind = text.function.types[op.operands[0]]
    held = positions(text, kind.dim(attrs.along))
    shape = f"{held}, {text.sizes.size(attrs.dim)}"
    table = text.view(f"rt.rope_table({shape}, {attrs.theta!r}, {quoted(kind.dtype)})")
    along, dim = kind.names.index(attrs.along), kind.names.index(attrs.dim)
    source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
    given = f"{along}, {dim}, layout={quoted(attrs.layout)}, inverse={attrs.inverse}"
    return [f"kernels.rope({source}, {table}, {given}, out={out})"]
