"""How attention is placed where axes divide its sequence: three ways to let queries see all keys.

`gather`: each rank gathers keys and values whole, and attends with the queries that it has; their
gradients are partial sums that are scattered back. `ring`: they go round the ranks, block by block.
`exchange`: heads are divided instead of the sequence for as long as attention takes (Jacobs et al.
2023, DeepSpeed Ulysses).
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir import ops
from fllmc.ir.program import Op, Program
from fllmc.ir.types import ZIGZAG
from fllmc.passes.place.directives import Axes, Layout
from fllmc.passes.place.site import Site, Value


def attend(site: Site, op: Op, attrs: ops.Attend) -> Sequence[Value]:
    """Attention or its gradient, as the schedule says where the sequence is divided."""
    home = site.place(op)
    axes = home.get(attrs.along, ())
    if axes and site.layout.context == "ring" and attrs.over == attrs.along:
        kind = ops.RingAttendGrad if isinstance(attrs, ops.AttendGrad) else ops.RingAttend
        operands = (site.take(value, home) for value in op.operands)
        return site.emit(kind(*structs.astuple(attrs), axes=axes), *operands)
    if axes and site.layout.context == "exchange":
        places = exchanged(home, attrs)
        found = site.emit(attrs, *(site.take(value, places) for value in op.operands))
        return [site.mover.move(value, home) for value in found]
    whole = {**home, attrs.over: ()}
    takes = (home, whole, whole, home, home, home)
    operands = (site.take(value, at) for value, at in zip(op.operands, takes, strict=False))
    return site.emit(attrs, *operands)


def exchanged(home: Axes, attrs: ops.Attend) -> Axes:
    """The axes of the sequence on the heads instead, inside of those that heads are on."""
    axes = home[attrs.along]
    heads = {name: (*home.get(name, ()), *axes) for name in (attrs.heads, attrs.kv_heads)}
    return {**home, attrs.along: (), attrs.over: (), **heads}


def dealt(layout: Layout, program: Program) -> Layout:
    """The layout with sequences dealt so that causal attention is equal work on all ranks.

    What is stored lies in one stretch on each rank: a parameter with such a dim keeps it whole.
    """
    marked = {dim: zigzag(layout.canonical[dim]) for dim in causal(layout, program)}
    if not marked:
        return layout
    stored = dict(layout.stored)
    for parameter in program.parameters:
        for dim in parameter.type.names:
            if dim in marked:
                axes = layout.stored_axes(parameter.name, parameter.type.names)
                rest = axes.get(dim, ())[len(marked[dim]) :]
                stored[parameter.name] = {**axes, dim: rest}
    return structs.replace(layout, canonical={**layout.canonical, **marked}, stored=stored)


def zigzag(axes: Sequence[str]) -> tuple[str, ...]:
    """The axes, dealing in zig-zag; several deal as one of their product's size would."""
    return tuple(axis + ZIGZAG for axis in axes)


def causal(layout: Layout, program: Program) -> tuple[str, ...]:
    """The divided dims along which ranks attend causally, each with the queries that it has."""
    if layout.context == "exchange":
        return ()
    found = (attrs.along for _, attrs in attentions(program) if attrs.mask == "causal")
    return tuple(dim for dim in dict.fromkeys(found) if layout.canonical.get(dim))


def attentions(program: Program) -> tuple[tuple[Op, ops.Attend], ...]:
    """Every attention and every gradient of one."""
    return tuple(
        (op, op.attrs)
        for function in program.functions
        for op in function.ops
        if isinstance(op.attrs, ops.Attend)
    )
