"""Whether a layout suits a program: checked on the program as it is, before anything is placed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.ops import Attend, Combine, Dispatch, Scan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.types import Sizes
from fllmc.passes.naming import parts_of
from fllmc.passes.place.attention import exchanged
from fllmc.passes.place.directives import Axes, Layout, divisors, sizes_that_work
from fllmc.passes.place_errors import (
    AxisTwice,
    HeadsApart,
    MustBeWhole,
    TooFewHeads,
    UnevenSequence,
)


def conflicts(layout: Layout, program: Program) -> tuple[Diagnostic, ...]:
    """Everything about the layout that the program's values and ops do not allow.

    A conflict that one pair of directives causes in many places is reported once.
    """
    found: dict[object, Diagnostic] = {}
    for key, diagnostic in _all(layout, program):
        found.setdefault(key, diagnostic)
    return tuple(found.values())


def _all(layout: Layout, program: Program) -> Iterator[tuple[object, Diagnostic]]:
    for function in program.functions:
        for op in function.ops:
            yield from _whole(layout, function, op)
            if isinstance(op.attrs, Attend):
                yield from _heads(layout, program, op, op.attrs)
                yield from _sequence(layout, program, op, op.attrs)
    yield from _parameters(layout, program)
    for function in program.functions:
        yield from _values(layout, function)


def _parameters(layout: Layout, program: Program) -> Iterator[tuple[object, Diagnostic]]:
    for parameter in program.parameters:
        axes = layout.stored_axes(parameter.name, parameter.type.names)
        where = f"parameter `{parameter.name}`"
        yield from _twice(layout, axes, parameter.type.names, where, parameter.name)
        if parameter.stack and axes.get(parameter.stack):
            axis = axes[parameter.stack][0]
            reason = layout.why(parameter.stack, axis, parameter.name)
            span = reason.span if reason else NOWHERE
            yield (
                (MustBeWhole, parameter.stack, axis),
                MustBeWhole(
                    span, parameter.stack, axis, "stack", f"`{parameter.name}`", parameter.span
                ),
            )


def _values(layout: Layout, function: Function) -> Iterator[tuple[object, Diagnostic]]:
    """Values with two dims on one axis."""
    for op in function.ops:
        where = f"the {op.kind} at `{op.path}`" if op.path else f"a {op.kind}"
        for value in op.results:
            yield from _twice(layout, layout.canonical, function.types[value].names, where)
    for given, kind in zip(function.inputs, function.types, strict=False):
        if given.role != "param":
            yield from _twice(layout, layout.canonical, kind.names, f"`{given.name}`")


def _twice(
    layout: Layout, axes: Axes, names: Sequence[str], where: str, parameter: str = ""
) -> Iterator[tuple[object, Diagnostic]]:
    seen: dict[str, str] = {}
    for name in names:
        for axis in axes.get(name, ()):
            if axis not in seen:
                seen[axis] = name
                continue
            first, second = _pair(layout, (seen[axis], name), axis, parameter)
            dims = f"`{seen[axis]}` and `{name}`" + (" again" if seen[axis] == name else "")
            zero = layout.zero.get(parameter)
            by_zero = zero is not None and zero.directive.span in (first, second)
            what = (first, second) if by_zero else frozenset((seen[axis], name))
            found = AxisTwice(second, axis, dims, where, first, by_zero)
            yield (AxisTwice, what, axis), found


def _pair(layout: Layout, dims: tuple[str, str], axis: str, parameter: str) -> tuple[Span, Span]:
    """The directives that put either dim on the axis, in their order."""
    stored = layout.stored_reasons.get(parameter, ())
    reasons = (*layout.reasons, *layout.elsewhere, *stored)
    found = [reason.span for reason in reasons if reason.axis == axis and reason.dim in dims]
    return found[0], found[-1]


def _whole(layout: Layout, function: Function, op: Op) -> Iterator[tuple[object, Diagnostic]]:
    """Dims that an op needs whole and that are divided; a directive with `elsewhere` yields to all
    ops but the scan of a stack, whose parameters have no other place.
    """
    placed = layout.most if isinstance(op.attrs, Scan) else layout.canonical
    for name in op.attrs.whole([function.types[value] for value in op.operands]):
        if isinstance(op.attrs, Combine | Dispatch) and name == op.attrs.along:
            continue  # slots take whole sequences, which are gathered for them
        for axis in placed.get(name, ())[:1]:
            span = _span_of(layout, name, axis)
            path = f"`{op.path}`" if op.path else f"`{function.name}`"
            yield (
                (MustBeWhole, name, axis),
                MustBeWhole(span, name, axis, op.kind, path, op.span),
            )


def _heads(
    layout: Layout, program: Program, op: Op, attrs: Attend
) -> Iterator[tuple[object, Diagnostic]]:
    """Query and key/value heads on different axes, but for key heads that can't be divided so."""
    axes = layout.most.get(attrs.heads, ())
    kv_axes = layout.most.get(attrs.kv_heads, ())
    sizes = Sizes(program.sizes.dims, layout.mesh)
    few = not kv_axes and sizes.size(attrs.kv_heads) % layout.mesh.extent(axes)
    if attrs.heads == attrs.kv_heads or axes == kv_axes or few:
        return
    axis = (axes or kv_axes)[-1]
    divided, whole = (attrs.heads, attrs.kv_heads) if axes else (attrs.kv_heads, attrs.heads)
    reason = f"`{divided}` is on `{axis}`, and `{whole}` is not"
    if axes and kv_axes:
        reason = f"they are on {', '.join(axes)} and on {', '.join(kv_axes)}"
    span = _span_of(layout, attrs.heads if axes else attrs.kv_heads, axis)
    works = sizes_that_work(layout, sizes, axis, (attrs.heads, attrs.kv_heads))
    yield (
        (HeadsApart, attrs.heads, attrs.kv_heads),
        HeadsApart(span, attrs.heads, attrs.kv_heads, reason, axis, works, op.span),
    )


def _sequence(
    layout: Layout, program: Program, op: Op, attrs: Attend
) -> Iterator[tuple[object, Diagnostic]]:
    """A sequence that is not dealt in two stretches a rank, or heads too few to exchange for it."""
    axes, sizes = layout.canonical.get(attrs.along, ()), Sizes(program.sizes.dims, layout.mesh)
    extent, size = layout.mesh.extent(axes), sizes.size(attrs.along)
    if extent == 1 or size % extent:
        return
    span = _span_of(layout, attrs.along, axes[-1])
    if layout.context == "exchange":
        on = exchanged(layout.canonical, attrs)[attrs.heads]
        ranks, heads = layout.mesh.extent(on), sizes.size(attrs.heads)
        if heads % ranks:
            shown = " and ".join(f"`{axis}`" for axis in on)
            few = TooFewHeads(span, attrs.heads, heads, shown, ranks, attrs.along, op.span)
            yield ((TooFewHeads, attrs.heads), few)
        return
    for dim in (attrs.along, *parts_of(attrs.along, sizes.dims)):
        size = sizes.size(dim)
        if attrs.mask == "causal" and size % (2 * extent):
            axis, others = axes[-1], extent // layout.mesh.extent(axes[-1:])
            works = tuple(n for n in divisors(size // others) if size % (2 * n * others) == 0)
            uneven = UnevenSequence(span, dim, size, axis, extent, works[-6:] or (1,), op.span)
            yield ((UnevenSequence, dim), uneven)
            return


def _span_of(layout: Layout, dim: str, axis: str) -> Span:
    reason = layout.why(dim, axis)
    return reason.span if reason else NOWHERE
