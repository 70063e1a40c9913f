"""How dispatch and combine are placed: with the tokens, and rows divided where these are not."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir import ops
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, bare
from fllmc.passes.place.directives import Axes
from fllmc.passes.place.expert_layout import packed_rows
from fllmc.passes.place.site import Site, Value


def dispatch(site: Site, op: Op, attrs: ops.Dispatch) -> Sequence[Value]:
    """Each rank orders its tokens' rows for all experts, or for its own where axes hold no tokens.

    Where an axis holds tokens, the rows go to the ranks of their experts at once: those in use, or
    by all-to-all with all their room.
    """
    value, index = op.operands
    tokens = token_axes(site, op, site.source.types[value].names)
    over = exchanged(site, op, tokens)
    if over:
        there = exchange(site, attrs, over, tokens)
        to = (Dim(there.packed, site.layout.experts.divides(there.rows)),)
        packed = structs.replace(attrs, to=to)
        (rows,) = site.emit(packed, site.take(value, tokens), site.take(index, tokens))
        (rows,) = site.emit(there, rows, site.take(index, without(tokens, over)))
        return (site.mover.move(rows, site.layout.axes(site.mover.kind(rows).names)),)
    placed = structs.replace(attrs, to=tuple(divided(site, tokens, dim.name) for dim in attrs.to))
    (rows,) = site.emit(placed, site.take(value, tokens), site.take(index, tokens))
    return (site.mover.move(rows, site.layout.axes(site.mover.kind(rows).names)),)


def combine(site: Site, op: Op, attrs: ops.Combine) -> Sequence[Value]:
    """The rows come to the ranks of their tokens; a sum over axes that hold experts alone."""
    rows, index = op.operands
    names = site.source.types[rows].names
    tokens = token_axes(site, op, [name for name in names if name not in attrs.of])
    over = exchanged(site, op, tokens)
    if over:
        there = exchange(site, attrs, over, tokens, back=True)
        at = without(tokens, over)
        far = {**at, there.rows: site.layout.experts.rows[there.rows]}
        (packed,) = site.emit(there, site.take(rows, far), site.take(index, at))
        nearer = structs.replace(attrs, of=(there.packed,))
        return site.emit(nearer, packed, site.take(index, tokens))
    of = {name: divided(site, tokens, name).axes for name in attrs.of}
    return site.emit(attrs, site.take(rows, {**tokens, **of}), site.take(index, tokens))


def exchanged(site: Site, op: Op, tokens: Axes) -> tuple[str, ...]:
    """The axes over which rows in use are exchanged: those of their experts, if tokens are there.

    None where rows are moved with all their room: where that is asked for, or where only some of
    the axes hold tokens, or others inside of them.
    """
    assert isinstance(op.attrs, ops.Dispatch | ops.Combine)
    dims = site.layout.experts
    own = dims.groups.get(rows_of(op.attrs), ())
    on = tokens[site.source.types[op.operands[1]].names[0]]
    return own if dims.ragged and own and on[len(on) - len(own) :] == own else ()


def exchange(
    site: Site,
    attrs: ops.Dispatch | ops.Combine,
    over: tuple[str, ...],
    tokens: Axes,
    back: bool = False,
) -> ops.ExchangeRows:
    """The exchange of the rows of a dispatch or for a combine."""
    rows = rows_of(attrs)
    return ops.ExchangeRows(rows, packed_rows(rows), attrs.along, attrs.choices, over, back)


def without(tokens: Axes, over: tuple[str, ...]) -> Axes:
    """Where tokens are, together over the axes on which their experts are apart."""
    return {name: tuple(axis for axis in on if axis not in over) for name, on in tokens.items()}


def grouped(site: Site, op: Op, attrs: ops.GroupedDot | ops.GroupedOuter) -> Sequence[Value]:
    """Where the experts are, with the choices of all tokens whose rows a rank may hold."""
    kinds = [site.source.types[value] for value in (*op.operands, *op.results)]
    names = dict.fromkeys(name for kind in kinds for name in kind.names)
    axes = site.layout.axes(names, (attrs.along, attrs.choices, attrs.rows))
    return site.emit(attrs, *(site.take(value, axes) for value in op.operands))


def tally(site: Site, op: Op, attrs: ops.Tally) -> Sequence[Value]:
    """Where the tokens are, each rank its own: a sum over parts of sequences that stays open."""
    (index,) = op.operands
    axes = site.layout.axes(site.source.types[index].names)
    return site.emit(attrs, site.take(index, axes))


def token_axes(site: Site, op: Op, names: Sequence[str]) -> Axes:
    """Where tokens with these dims are.

    Their sequence is in parts only where each may have rows of its own: not with slots, and not on
    axes that hold experts.
    """
    attrs = op.attrs
    assert isinstance(attrs, ops.Dispatch | ops.Combine)
    index = site.source.types[op.operands[1]]
    together = tuple(dict.fromkeys((*index.names, *names)))
    axes = site.layout.axes(together, (attrs.along, attrs.choices))
    parts = site.layout.experts.parts.get(attrs.along, ()) if rows_of(attrs) else ()
    own = tuple(axis for axis in axes.get(attrs.along, ()) if bare(axis) in parts)
    return {**{name: axes.get(name, ()) for name in together}, attrs.along: own}


def rows_of(attrs: ops.Dispatch | ops.Combine) -> str:
    """The dim of rows of the dropless form; nothing for slots."""
    of = tuple(dim.name for dim in attrs.to) if isinstance(attrs, ops.Dispatch) else attrs.of
    return of[0] if len(of) == 1 else ""


def divided(site: Site, tokens: Axes, name: str) -> Dim:
    """A dim of expert layout on those of its axes that hold no tokens, inside of their parts."""
    dims = site.layout.experts
    if name in dims.slots:
        return Dim(name)
    parts = dims.divides(name)
    own = dims.groups.get(name, dims.experts.get(name, ()))
    taken = {bare(axis) for on in tokens.values() for axis in on}
    return Dim(name, (*parts, *(axis for axis in own if axis not in taken)))
