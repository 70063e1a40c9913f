"""How dispatch and combine are placed: with the tokens, and rows divided where these are not."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir import ops
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, bare
from fllmc.passes.place.directives import Axes
from fllmc.passes.place.site import Site, Value


def dispatch(site: Site, op: Op, attrs: ops.Dispatch) -> Sequence[Value]:
    """Each rank orders its tokens' rows for all experts, or for its own where axes hold no tokens.

    Where an axis holds tokens, the rows go to the ranks of their experts at once.
    """
    value, index = op.operands
    tokens = token_axes(site, op, site.source.types[value].names)
    placed = structs.replace(attrs, to=tuple(divided(site, tokens, dim.name) for dim in attrs.to))
    (rows,) = site.emit(placed, site.take(value, tokens), site.take(index, tokens))
    return (site.mover.move(rows, site.layout.axes(site.mover.kind(rows).names)),)


def combine(site: Site, op: Op, attrs: ops.Combine) -> Sequence[Value]:
    """The rows come to the ranks of their tokens; a sum over axes that hold experts alone."""
    rows, index = op.operands
    names = site.source.types[rows].names
    tokens = token_axes(site, op, [name for name in names if name not in attrs.of])
    of = {name: divided(site, tokens, name).axes for name in attrs.of}
    return site.emit(attrs, site.take(rows, {**tokens, **of}), site.take(index, tokens))


def token_axes(site: Site, op: Op, names: Sequence[str]) -> Axes:
    """Where tokens with these dims are, their sequence whole."""
    index = site.source.types[op.operands[1]]
    together = tuple(dict.fromkeys((*index.names, *names)))
    axes = site.layout.axes(together, op.attrs.whole([site.source.types[v] for v in op.operands]))
    return {name: axes.get(name, ()) for name in together}


def divided(site: Site, tokens: Axes, name: str) -> Dim:
    """A dim of expert layout on those of its axes that hold no tokens."""
    dims = site.layout.experts
    axes = dims.rows.get(name, dims.experts.get(name, ()))
    taken = {bare(axis) for on in tokens.values() for axis in on}
    return Dim(name, tuple(axis for axis in axes if axis not in taken))
