"""The built-in functions of positions: `pick`, `one_hot`, `positions`, `shift` and `concat`."""

from __future__ import annotations

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.typed import (
    Concat,
    Kind,
    Number,
    OneHot,
    Pick,
    Positions,
    Requirement,
    Shift,
    Typed,
)
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


def shift(body: Body, span: Span, x: Typed, along: str, by: float) -> Typed:
    """x as it is `by` positions further on."""
    if by != int(by) or x.kind.form == "truth":
        wanted, found = ("a whole number", f"{by:g}") if by != int(by) else ("numbers", "truths")
        return body.broken(span, WrongValue(span, "what `shift` takes", wanted, found))
    return Typed(x.kind, Shift(along, int(by)), (x,), span)


def concat(
    body: Body,
    span: Span,
    tensors: tuple[Typed, ...],
    dims: tuple[tuple[str, ...], tuple[str, ...]],
) -> Typed:
    """a, and b behind it: a dim of each becomes one; what one lacks besides is repeated."""
    (a, b), (over, to) = tensors, dims
    fits = len(over) == 2 and len(to) == 1
    fits = fits and over[0] in a.kind.dims and over[1] in b.kind.dims
    rest = [n for n in (*a.kind.dims, *b.kind.dims) if n not in over] if fits else []
    if not fits or to[0] in rest or over[1] in a.kind.dims or over[0] in b.kind.dims:
        wanted, found = "`over: (DIM OF a, DIM OF b)`, to one dim", f"{a.kind} and {b.kind}"
        return body.broken(span, WrongValue(span, "what `concat` takes", wanted, found))
    body.requirements.append(Requirement("sum", to[0], f"{over[0]} {over[1]}", span))
    kind = Kind((*dict.fromkeys(rest), to[0]))
    return Typed(kind, Concat(over[0], over[1], to[0]), tensors, span)
