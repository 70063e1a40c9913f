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


def number(text: FunctionText, op: Op, at: int) -> list[str]:
    """Positions, or other indices, as numbers."""
    del at
    return [f"{text.tensor(op.results[0])}.copy_({text.tensor(op.operands[0])})"]


def heads_first(text: FunctionText, value: int, order: tuple[str, ...]) -> str:
    """A [batch, heads, along, dim] view (without dim for the log-sum-exp)."""
    kind = text.function.types[value]
    batch = [name for name in kind.names if name not in order]
    groups = [batch, *([name] for name in order if name in kind.names)]
    if batch:
        return text.view(matrix(text.tensor(value), kind, text.sizes, groups))
    permuted = [kind.names.index(name) for name in order if name in kind.names]
    return text.view(f"{text.tensor(value)}.permute({shape_text(permuted)}).unsqueeze(0)")


def views(text: FunctionText, op: Op, attrs: Attend) -> tuple[list[str], list[str], list[str]]:
    """Views of the operands, of the results, and of sinks, bias and where documents start."""
    q, o = ((attrs.heads, attrs.along, width) for width in (attrs.dim, attrs.width))
    k, v = ((attrs.kv_heads, attrs.over, width) for width in (attrs.dim, attrs.width))
    extras = [text.tensor(value) for value in op.operands[3 : attrs.taken]]
    backward = isinstance(attrs, AttendGrad)
    orders: Sequence[tuple[str, ...]] = [q, k, v, o, o, o] if backward else [q, k, v]
    if attrs.documents:
        extras.append(starts_view(text, op.operands[-1], attrs))
    behind = op.operands[attrs.taken : attrs.taken + 3] if backward else ()
    values = (*op.operands[:3], *behind)
    given = [heads_first(text, value, order) for value, order in zip(values, orders, strict=True)]
    results = zip(op.results, [q, k, v] if backward else [o, o], strict=False)
    out = [heads_first(text, value, order) for value, order in results]
    out += [text.tensor(value) for value in op.results[len(out) :]]
    return given, out, extras


def starts_view(text: FunctionText, value: int, attrs: Attend) -> str:
    """Where documents start, [batch, along]."""
    kind = text.function.types[value]
    batch = [name for name in kind.names if name != attrs.along]
    return text.view(matrix(text.tensor(value), kind, text.sizes, [batch, [attrs.along]]))


def options(attrs: Attend, out: Sequence[str], extras: Sequence[str]) -> str:
    """The keyword arguments that all have."""
    found = [f"scale={attrs.scale!r}", f"causal={attrs.mask == 'causal'}"]
    named = {"window": attrs.window, "cap": attrs.cap}
    found += [f"{name}={value!r}" for name, value in named.items() if value]
    if attrs.sinks:
        found.append(f"sinks={extras[0]}")
    if attrs.bias:
        found.append(f"bias={extras[attrs.taken - 4]}, origin={attrs.origin}")
    if attrs.documents:
        found.append(f"starts={extras[-1]}")
    return ", ".join((*found, f"out=({', '.join(out)})"))


def attend(text: FunctionText, op: Op, at: int) -> list[str]:
    """Attention forward or backward by the kernel family's torch side."""
    del at
    assert isinstance(op.attrs, Attend)
    attrs = op.attrs
    given, out, extras = views(text, op, attrs)
    suffix = "_grad" if isinstance(attrs, AttendGrad) else ""
    along = text.function.types[op.operands[0]].dim(attrs.along)
    stop = attrs.first + text.sizes.size(attrs.along)
    rest = options(attrs, out, extras)
    if attrs.positional and (along.axes or stop != text.sizes.size(attrs.over)):
        held = positions(text, along)
        if attrs.first:
            held = text.view(f"rt.moved({held}, {attrs.first})")
        return [f"kernels.attend_part{suffix}({', '.join((*given, held))}, {rest})"]
    return [f"kernels.attend{suffix}({', '.join(given)}, {rest})"]


def ring_attend(text: FunctionText, op: Op, at: int) -> list[str]:
    """Attention whose keys and values go round, with room for those on their way."""
    attrs = op.attrs
    assert isinstance(attrs, RingAttend)
    given, out, extras = views(text, op, attrs)
    kinds = [text.function.types[value] for value in op.operands[1:3]]
    held = text.view(f"rt.held({quoted(attrs.along)}, {attrs.axes!r})")
    elements = sum(text.sizes.local_elements(kind) for kind in kinds)
    dtype = kinds[0].dtype
    blocks = text.view(f"rt.view({quoted(dtype)}, {text.offset(at, 0)}, (2, {elements}))")
    site = text.sites[text.function.name, at]
    rest = f"{held}, {blocks}"
    name = "ring_attend"
    if isinstance(attrs, RingAttendGrad):
        sums = "f64" if dtype == "f64" else "f32"
        grads = text.view(f"rt.view({quoted(sums)}, {text.offset(at, 1)}, (3, {elements}))")
        name, rest = "ring_attend_grad", f"{rest}, {grads}"
    call = f"{site}, {', '.join(given)}, {rest}, {options(attrs, out, extras)}"
    return [f"rt.{name}({call})"]


def rope(text: FunctionText, op: Op, at: int) -> list[str]:
    """Rotation by a table of cosines and sines that is bound once."""
    del at
    assert isinstance(op.attrs, Rope)
    attrs = op.attrs
    kind = text.function.types[op.operands[0]]
    held = positions(text, kind.dim(attrs.along))
    plain = Rope("", "")
    numbers = ("theta", "factor", "ramp", "low", "high", "factors", "magnitude")
    pairs = ((name, getattr(attrs, name)) for name in numbers)
    told = "".join(f", {n}={v!r}" for n, v in pairs if n == "theta" or v != getattr(plain, n))
    width = attrs.width(text.sizes)
    table = text.view(f"rt.rope_table({held}, {width}, {quoted(kind.dtype)}{told})")
    along, dim = kind.names.index(attrs.along), kind.names.index(attrs.dim)
    source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
    given = f"{along}, {dim}, layout={quoted(attrs.layout)}, inverse={attrs.inverse}"
    given += f", behind={attrs.behind}" if attrs.behind else ""
    return [f"kernels.rope({source}, {table}, {given}, out={out})"]
