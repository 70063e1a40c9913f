"""The gradients of mixtures of experts: dispatch and combine are each other's transpose."""

from __future__ import annotations

import msgspec

from fllmc.ir import ops
from fllmc.ir.types import Dim
from fllmc.passes.gradient_site import Site, ordered, written_out


def top_k(s: Site, attrs: ops.TopK, position: int) -> int | None:
    """At the positions that were chosen, zeros elsewhere."""
    if s.cotangents[0] is None:
        return None
    spread_out = s.b.one(ops.Spread(Dim(attrs.dim)), s.dy_with(s.result().names), s.y(1))
    return ordered(s.b, s.b.sum(spread_out, (attrs.to,)), s.kind(0))


def dispatch(s: Site, attrs: ops.Dispatch, position: int) -> int | None:
    """Combined, over the choices too where each brought the same row."""
    if position == 1:
        return None
    apart = attrs.choices in s.kind(0).names
    back = ops.Combine(attrs.along, attrs.choices, tuple(dim.name for dim in attrs.to), apart)
    return s.b.one(back, written_out(s.b, s.dy, s.result()), s.x(1))


def combine(s: Site, attrs: ops.Combine, position: int) -> int | None:
    """Dispatched."""
    if position == 1:
        return None
    back = ops.Dispatch(attrs.along, attrs.choices, tuple(Dim(name) for name in attrs.of))
    return s.b.one(back, written_out(s.b, s.dy, s.result()), s.x(1))


def grouped_dot(s: Site, attrs: ops.GroupedDot, position: int) -> int | None:
    """Of the rows by the matrices the other way round, of the matrices by outer products."""
    if position == 2:
        return None
    dy = written_out(s.b, s.dy, s.result())
    own = tuple(name for name in s.kind(1).names[1:] if name not in attrs.contract)
    if position == 0:
        return s.b.one(msgspec.structs.replace(attrs, contract=own), dy, s.x(1), s.x(2))
    pair = (s.x(0), dy) if s.kind(1).names[1:] == (*attrs.contract, *own) else (dy, s.x(0))
    back = ops.GroupedOuter(attrs.experts, attrs.rows, attrs.along, attrs.choices)
    return s.b.one(back, *pair, s.x(2))


def grouped_outer(s: Site, attrs: ops.GroupedOuter, position: int) -> int | None:
    """Each operand's rows times the cotangent of their expert."""
    if position == 2:
        return None
    other = s.kind(1 - position)
    contract = other.names[other.names.index(attrs.rows) + 1 :]
    back = ops.GroupedDot(attrs.experts, attrs.rows, attrs.along, attrs.choices, contract)
    return s.b.one(back, s.x(1 - position), written_out(s.b, s.dy, s.result()), s.x(2))
