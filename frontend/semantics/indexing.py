"""The built-in functions of indices: `pick`, `one_hot` and `positions`."""

from __future__ import annotations

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.typed import Kind, Number, OneHot, Pick, Positions, Typed
from fllmc.frontend.type_errors import WrongValue
from fllmc.ir.span import Span


def pick(body: Body, span: Span, x: Typed, index: Typed) -> Typed:
    """x at indices of one of its dims: its other dims, then those that the index has besides."""
    dim = index.kind.index
    if dim not in x.kind.dims or dim in index.kind.dims:
        wanted = f"indices of a dim of {x.kind}"
        found = WrongValue(index.span, "`index` of `pick`", wanted, str(index.kind))
        return body.broken(span, found)
    own = tuple(name for name in x.kind.dims if name != dim)
    more = tuple(name for name in index.kind.dims if name not in own)
    return Typed(Kind((*own, *more)), Pick(dim), (x, index), span)


def one_hot(body: Body, span: Span, index: Typed) -> Typed:
    """One at each index along a new last dim, and zero elsewhere."""
    dim = index.kind.index
    if not dim or dim in index.kind.dims:
        found = WrongValue(index.span, "`index` of `one_hot`", "indices", str(index.kind))
        return body.broken(span, found)
    return Typed(Kind((*index.kind.dims, dim)), OneHot(dim), (index,), span)


def number(body: Body, span: Span, index: Typed) -> Typed:
    """Indices as numbers, to compute with."""
    if not index.kind.index:
        found = WrongValue(index.span, "`index` of `number`", "indices", str(index.kind))
        return body.broken(span, found)
    return Typed(Kind(index.kind.dims), Number(), (index,), span)


def positions(span: Span, along: str) -> Typed:
    """The positions along a dim."""
    return Typed(Kind((along,), along, "index"), Positions(along), (), span)
