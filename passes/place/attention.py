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
from fllmc.ir.types import ZIGZAG, Dim, Sizes
from fllmc.passes.naming import parts_of
from fllmc.passes.place.directives import Axes, Layout
from fllmc.passes.place.site import Site, Value


def attend(site: Site, op: Op, attrs: ops.Attend) -> Sequence[Value]:
    """Attention or its gradient, as the schedule says where the sequence is divided."""
    sizes, context = site.mover.build.sizes, site.layout.context
    home = fitting(attrs, site.place(op), sizes)
    axes = home.get(attrs.along, ())
    queries, keys = home, {**home, attrs.over: ()}
    if axes and context == "ring" and attrs.over == attrs.along:
        kind = ops.RingAttendGrad if isinstance(attrs, ops.AttendGrad) else ops.RingAttend
        attrs, keys = kind(*structs.astuple(attrs), axes=axes), home
    elif axes and context == "exchange":
        queries = keys = exchanged(home, attrs)
    keys = fitting(attrs, keys, sizes)
    behind = len(op.operands) - 3
    places = (queries, keys, keys, *[queries] * behind)
    operands = [site.take(value, at) for value, at in zip(op.operands, places, strict=True)]
    together = keys.get(attrs.heads, ()) == keys.get(attrs.kv_heads, ())
    found = site.emit(attrs, *operands) if together else copied(site, attrs, operands)
    return [site.mover.move(value, home) for value in found] if queries is not home else found


def exchanged(home: Axes, attrs: ops.Attend) -> Axes:
    """The axes of the sequence on the heads instead, inside of those that heads are on."""
    heads = (*home.get(attrs.heads, ()), *home[attrs.along])
    return {**home, attrs.along: (), attrs.over: (), attrs.kv_heads: heads, attrs.heads: heads}


def fitting(attrs: ops.Attend, places: Axes, sizes: Sizes) -> Axes:
    """The places, with key heads whole where they can't be divided as query heads are."""
    ranks = sizes.mesh.extent(places.get(attrs.heads, ()))
    return {**places, attrs.kv_heads: ()} if sizes.size(attrs.kv_heads) % ranks else places


def copied(site: Site, attrs: ops.Attend, operands: Sequence[int]) -> Sequence[int]:
    """Attention or its gradient where key heads are whole, and query heads are not.

    Each query head gets a copy of its key head; the copies' gradients are added up.
    """
    q, keys, values, *rest = operands
    sizes = site.mover.build.sizes
    heads = site.mover.kind(q).dim(attrs.heads)
    group = sizes.size(attrs.heads) // sizes.size(attrs.kv_heads)
    (own,) = site.emit(ops.Iota(heads, 0, attrs.kv_heads, group))
    copies = [site.emit(ops.Take(attrs.kv_heads), each, own)[0] for each in (keys, values)]
    found = site.emit(structs.replace(attrs, kv_heads=attrs.heads), q, *copies, *rest)
    if not isinstance(attrs, ops.AttendGrad):
        return found
    sums = [site.emit(ops.Put(Dim(attrs.kv_heads)), own, each)[0] for each in found[1:3]]
    both = zip(sums, (keys, values), strict=True)
    back = [site.emit(ops.Transpose(site.mover.kind(v).names), each)[0] for each, v in both]
    return (found[0], *back, *found[3:])


def dealt(layout: Layout, program: Program) -> Layout:
    """The layout with sequences dealt so that causal attention is equal work on all ranks.

    What is stored lies in one stretch on each rank: a parameter with such a dim keeps it whole.
    """
    marked = {dim: zigzag(layout.canonical[dim]) for dim in causal(layout, program)}
    if not marked:
        return layout
    stored, unzeroed = dict(layout.stored), dict(layout.unzeroed)
    for parameter in program.parameters:
        for dim in parameter.type.names:
            if dim in marked:
                name, names = parameter.name, parameter.type.names
                stored[name] = undealt(layout.stored_axes(name, names), dim, marked)
                if name in unzeroed:
                    unzeroed[name] = undealt(unzeroed[name], dim, marked)
    canonical = {**layout.canonical, **marked}
    return structs.replace(layout, canonical=canonical, stored=stored, unzeroed=unzeroed)


def undealt(axes: Axes, dim: str, marked: Axes) -> Axes:
    """How something is stored, with the dim on none of the axes that deal it."""
    return {**axes, dim: axes.get(dim, ())[len(marked[dim]) :]}


def zigzag(axes: Sequence[str]) -> tuple[str, ...]:
    """The axes, dealing in zig-zag; several deal as one of their product's size would."""
    return tuple(axis + ZIGZAG for axis in axes)


def causal(layout: Layout, program: Program) -> tuple[str, ...]:
    """The divided dims along which ranks attend causally, each with the queries that it has."""
    if layout.context == "exchange":
        return ()
    found = (attrs.along for _, attrs in attentions(program) if attrs.mask == "causal")
    dims = program.sizes.dims
    parts = (name for dim in dict.fromkeys(found) for name in (dim, *parts_of(dim, dims)))
    return tuple(dim for dim in parts if layout.canonical.get(dim))


def attentions(program: Program) -> tuple[tuple[Op, ops.Attend], ...]:
    """Every attention and every gradient of one."""
    return tuple(
        (op, op.attrs)
        for function in program.functions
        for op in function.ops
        if isinstance(op.attrs, ops.Attend)
    )
