"""The gradient of each op: one table from the class of its attributes to its rule.

A rule gives the cotangent of one operand from those of the results. Cotangents are lazy about
broadcasts: one that lacks a dim of its value is the same at each position of it. So a sum passes
its cotangent on as it is, elementwise ops broadcast it by name where it meets other values, and
only where an op needs a dim is it written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, Type
from fllmc.passes import gradient_experts as experts
from fllmc.passes.gradient_site import Site, ordered, widened, written_out

Rule: TypeAlias = Callable[[Site, Any, int], "int | None"]
"""Takes the site, the op's attributes and an operand's position; gives the cotangent, if any."""


def nothing(s: Site, attrs: ops.Attrs, position: int) -> int | None:
    """No gradient flows through."""
    return None


def elementwise(rule: Callable[[Site, int], int | None]) -> Rule:
    """The rule of an elementwise op: summed over the dims along which the operand is broadcast."""

    def lifted(s: Site, attrs: ops.Attrs, position: int) -> int | None:
        found = rule(s, position)
        if found is None:
            return None
        lost = tuple(name for name in s.result().names if name not in s.kind(position).names)
        return s.b.sum(widened(s.b, found, s.result(), lost), lost)

    return lifted


def unary(slope: Callable[[Site], int]) -> Rule:
    """The rule of a function of one operand with this slope."""
    return elementwise(lambda s, position: s.b.mul(s.dy, slope(s)))


def passed(s: Site, position: int) -> int | None:
    """The cotangent as it is."""
    return s.dy


def sub(s: Site, position: int) -> int | None:
    """a - b."""
    return s.dy if position == 0 else s.b.neg(s.dy)


def mul(s: Site, position: int) -> int | None:
    """a * b; of a square all at once."""
    if s.op.operands[0] == s.op.operands[1]:
        return s.b.mul(s.b.mul(s.dy, s.b.constant(2.0)), s.x(0)) if position == 0 else None
    return s.b.mul(s.dy, s.x(1 - position))


def div(s: Site, position: int) -> int | None:
    """a / b."""
    scaled = s.b.div(s.dy, s.x(1))
    return scaled if position == 0 else s.b.neg(s.b.mul(scaled, s.y()))


def power(s: Site, position: int) -> int | None:
    """a^b: b a^(b-1) and log(a) a^b."""
    b = s.b
    if position == 1:
        return b.mul(s.dy, b.mul(s.y(), b.one(ops.Log(), s.x(0))))
    lower = b.one(ops.Pow(), s.x(0), b.sub(s.x(1), b.constant(1.0)))
    return b.mul(s.dy, b.mul(s.x(1), lower))


def chosen(s: Site, condition: int, where: bool) -> int:
    """The cotangent where the condition is so, zeros elsewhere."""
    none = s.b.constant(0.0)
    pair = (s.dy, none) if where else (none, s.dy)
    return s.b.one(ops.Where(), condition, *pair)


def maximum(s: Site, position: int) -> int | None:
    """To a where it is the larger, else to b: with max(x, 0) nothing flows back at 0."""
    return chosen(s, s.b.one(ops.Less(), s.x(1), s.x(0)), position == 0)


def minimum(s: Site, position: int) -> int | None:
    """To a where it is the smaller, else to b."""
    return chosen(s, s.b.one(ops.Less(), s.x(0), s.x(1)), position == 0)


def where(s: Site, position: int) -> int | None:
    """To the side that was chosen."""
    return chosen(s, s.x(0), position == 1) if position else None


def logistic_slope(s: Site) -> int:
    """y (1 - y)."""
    return s.b.mul(s.y(), s.b.sub(s.b.constant(1.0), s.y()))


def tanh_slope(s: Site) -> int:
    """1 - y^2."""
    return s.b.sub(s.b.constant(1.0), s.b.mul(s.y(), s.y()))


def erf_slope(s: Site) -> int:
    """2 / sqrt(pi) exp(-x^2)."""
    bell = s.b.exp(s.b.neg(s.b.mul(s.x(0), s.x(0))))
    return s.b.mul(s.b.constant(2.0 / math.sqrt(math.pi)), bell)


def rsqrt_slope(s: Site) -> int:
    """-y^3 / 2."""
    cube = s.b.mul(s.y(), s.b.mul(s.y(), s.y()))
    return s.b.mul(s.b.constant(-0.5), cube)


def log(s: Site, position: int) -> int | None:
    """1 / x."""
    return s.b.div(s.dy, s.x(0))


def square_root(s: Site, position: int) -> int | None:
    """1 / (2 y)."""
    return s.b.div(s.b.mul(s.dy, s.b.constant(0.5)), s.y())


def cast(s: Site, position: int) -> int | None:
    """Back to the operand's dtype."""
    return s.b.cast(s.dy, s.kind(0).dtype)


def rename(s: Site, attrs: ops.Rename, position: int) -> int | None:
    """Back to the old names."""
    return s.b.rename(s.dy, {new: old for old, new in attrs.pairs})


def as_it_is(s: Site, attrs: ops.Attrs, position: int) -> int | None:
    """Of a transpose, and of a sum, since the lost dims are broadcast by name."""
    return s.dy


def silu(s: Site, position: int) -> int:
    """By its own gradient op."""
    return s.b.one(ops.SiluGrad(), s.dy_with(s.result().names), s.x(0))


def greatest(s: Site, attrs: ops.ReduceMax, position: int) -> int | None:
    """To the largest elements, in equal shares where several are."""
    b, kind = s.b, s.kind(0)
    smaller = b.one(ops.Less(), s.x(0), s.y())
    ones = b.one(ops.Where(), smaller, b.constant(0.0), b.one(ops.Fill(1.0, kind.dtype)))
    share = b.div(s.dy, b.sum(ones, attrs.dims))
    return b.one(ops.Where(), smaller, b.constant(0.0), share)


def dot(s: Site, attrs: ops.Dot, position: int) -> int | None:
    """The other operand, contracted with the cotangent over the dims that it alone has."""
    mine, others = s.kind(position).names, s.kind(1 - position).names
    own = tuple(name for name in others if name not in mine)
    return contracted(s.b, s.dy, s.x(1 - position), own, s.kind(position))


def contracted(b: Builder, dy: int, other: int, over: Sequence[str], kind: Type) -> int:
    """dot[over](dy, other), with the operands in the order that gives the layout of `kind`."""
    have = b.types[dy].names
    other = b.sum(other, tuple(name for name in over if name not in have))
    left = tuple(name for name in over if name in have)
    if not left:
        return b.mul(dy, other)
    natural = product_names(b.types[dy].names, b.types[other].names, left)
    if natural == tuple(name for name in kind.names if name in natural):
        return b.one(ops.Dot(left), dy, other)
    return b.one(ops.Dot(left), other, dy)


def product_names(a: Sequence[str], b: Sequence[str], over: Sequence[str]) -> tuple[str, ...]:
    """The dims of a dot of values with these dims, in order."""
    batch = tuple(name for name in a if name in b and name not in over)
    own_a, own_b = (n for n in a if n not in b), (n for n in b if n not in a)
    return (*batch, *own_a, *own_b)


def take(s: Site, attrs: ops.Take, position: int) -> int | None:
    """Added up at the rows that were taken."""
    if position == 1:
        return None
    return s.b.one(ops.Put(Dim(attrs.dim)), s.x(1), s.dy_with(s.kind(1).names))


def put(s: Site, attrs: ops.Put, position: int) -> int | None:
    """Taken from the rows that were added to."""
    if position == 0:
        return None
    return s.b.one(ops.Take(attrs.dim.name), s.dy_with((attrs.dim.name,)), s.x(0))


def pick(s: Site, attrs: ops.Pick, position: int) -> int | None:
    """At the position that was picked, zeros elsewhere."""
    if position == 1:
        return None
    spread_out = s.b.one(ops.Spread(Dim(attrs.dim)), s.dy_with(s.kind(1).names), s.x(1))
    more = tuple(name for name in s.kind(1).names if name not in s.kind(0).names)
    return s.b.sum(spread_out, more)


def spread(s: Site, attrs: ops.Spread, position: int) -> int | None:
    """Picked at the position."""
    if position == 1:
        return None
    names = (*s.kind(1).names, attrs.dim.name)
    return s.b.one(ops.Pick(attrs.dim.name), s.dy_with(names), s.x(1))


def shift(s: Site, attrs: ops.Shift, position: int) -> int | None:
    """Shifted back."""
    return s.b.one(ops.Shift(attrs.to, attrs.dim, -attrs.by), s.dy_with((attrs.to,)))


def record(s: Site, attrs: ops.Record, position: int) -> int | None:
    """What is recorded, whatever the cotangent."""
    return None if position else ordered(s.b, s.x(1), s.kind(0))


def chunk(s: Site, attrs: ops.Chunk, position: int) -> int | None:
    """Taken up again."""
    back = ops.Unchunk(attrs.dim, attrs.part, attrs.over)
    return s.b.one(back, written_out(s.b, s.dy, s.result()))


def unchunk(s: Site, attrs: ops.Unchunk, position: int) -> int | None:
    """Dealt out again."""
    back = ops.Chunk(attrs.dim, attrs.part, attrs.over)
    return s.b.one(back, written_out(s.b, s.dy, s.result()))


def rope(s: Site, attrs: ops.Rope, position: int) -> int | None:
    """Turned back."""
    back = msgspec.structs.replace(attrs, inverse=not attrs.inverse)
    return s.b.one(back, s.dy_with((attrs.along, attrs.dim)))


def attend(s: Site, attrs: ops.Attend, position: int) -> int | None:
    """One op gives them all; the log-sum-exp is for the backward pass and has no gradient."""
    if position == attrs.taken:
        return None  # where documents start
    if s.cotangents[1] is not None:
        raise InternalError(f"{s.op.path}: no gradient flows through the log-sum-exp of attend")
    if not s.shared:
        back = ops.AttendGrad(*msgspec.structs.astuple(attrs))
        values = (*map(s.x, range(attrs.taken)), s.y(0), s.y(1))
        starts = (s.x(attrs.taken),) if attrs.documents else ()
        s.shared = s.b.emit(back, *values, written_out(s.b, s.dy, s.result()), *starts)
    return s.shared[position]


def conv(s: Site, attrs: ops.Conv, position: int) -> int | None:
    """Windows back to where they were, or what each tap met."""
    x, w = s.kind(0).names, s.kind(1).names
    groups = tuple(name for name in x if name in w and name not in attrs.contract)
    given: dict[str, Any] = {**msgspec.structs.asdict(attrs), "groups": groups}
    dy = written_out(s.b, s.dy, s.result())
    if position == 0:
        return ordered(s.b, s.b.one(ops.ConvInput(**given), dy, s.x(1)), s.kind(0))
    return ordered(s.b, s.b.one(ops.ConvWeight(**given), s.x(0), dy), s.kind(1))


def recur(s: Site, attrs: ops.Recur, position: int) -> int | None:
    """One op gives all."""
    if not s.shared:
        back = ops.RecurGrad(*msgspec.structs.astuple(attrs))
        values = [s.x(number) for number in range(len(s.op.operands))]
        s.shared = s.b.emit(back, *values, written_out(s.b, s.dy, s.result()))
    return s.shared[position]


GRADIENTS: Final[Mapping[type[ops.Attrs], Rule]] = {
    **dict.fromkeys(
        (ops.Fill, ops.Iota, ops.Less, ops.Number, ops.Random, ops.Reindex, ops.Stop, ops.Tally),
        nothing,
    ),
    **dict.fromkeys((ops.Dequantize, ops.Quantize), nothing),
    ops.Add: elementwise(passed),
    ops.AddN: elementwise(passed),
    ops.Attend: attend,
    ops.Cast: elementwise(cast),
    ops.Chunk: chunk,
    ops.Combine: experts.combine,
    ops.Conv: conv,
    ops.Cos: unary(lambda s: s.b.neg(s.b.one(ops.Sin(), s.x(0)))),
    ops.Dispatch: experts.dispatch,
    ops.Div: elementwise(div),
    ops.Dot: dot,
    ops.Erf: unary(erf_slope),
    ops.Exp: unary(lambda s: s.y()),
    ops.GroupedDot: experts.grouped_dot,
    ops.GroupedOuter: experts.grouped_outer,
    ops.Log: elementwise(log),
    ops.Maximum: elementwise(maximum),
    ops.Minimum: elementwise(minimum),
    ops.Mul: elementwise(mul),
    ops.Neg: elementwise(lambda s, position: s.b.neg(s.dy)),
    ops.Pick: pick,
    ops.Pow: elementwise(power),
    ops.Put: put,
    ops.Recur: recur,
    ops.Record: record,
    ops.ReduceMax: greatest,
    ops.ReduceSum: as_it_is,
    ops.Rename: rename,
    ops.Rope: rope,
    ops.Rsqrt: unary(rsqrt_slope),
    ops.Shift: shift,
    ops.Sigmoid: unary(logistic_slope),
    ops.Silu: elementwise(silu),
    ops.Sin: unary(lambda s: s.b.one(ops.Cos(), s.x(0))),
    ops.Spread: spread,
    ops.Sqrt: elementwise(square_root),
    ops.Sub: elementwise(sub),
    ops.Take: take,
    ops.Tanh: unary(tanh_slope),
    ops.TopK: experts.top_k,
    ops.Transpose: as_it_is,
    ops.Unchunk: unchunk,
    ops.Where: elementwise(where),
}
"""Every op that may stand in a program before it is differentiated, but `scan`."""


def rule_of(op: Op) -> Rule:
    """The op's rule; InternalError if it has none."""
    found = GRADIENTS.get(type(op.attrs))
    if found is None:
        raise InternalError(f"{op.kind} at {op.path} has no gradient")
    return found
