"""The gradient of each op: one rule an op, in terms of other ops.

A rule gets the op's result cotangents and hands contributions to its operands. A cotangent may lack
dims that its value has: it then stands for the same number along them, as broadcasting does, so a
sum's gradient costs nothing. Gradients for inputs and for weights are separate ops.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fllmc.ir import ops
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Attrs
from fllmc.ir.program import Op
from fllmc.passes.reverse import Reverse

Cotangents = Sequence[int | None]
Rule = Callable[[Reverse, Op, Cotangents], None]


def first(cotangents: Cotangents) -> int:
    """The cotangent of an op's one result; rules run only when there is one."""
    found = cotangents[0]
    if found is None:
        raise InternalError("a gradient rule ran without a cotangent")
    return found


def elementwise(*parts: Callable[[Reverse, Op, int], int]) -> Rule:
    """A rule with one part for each operand: (reverse, op, cotangent) -> contribution."""

    def rule(r: Reverse, op: Op, cotangents: Cotangents) -> None:
        for operand, part in zip(op.operands, parts, strict=True):
            if r.wants(operand):
                r.give(operand, part(r, op, first(cotangents)))

    return rule


def same(r: Reverse, op: Op, d: int) -> int:
    """The cotangent itself."""
    del r, op
    return d


def negated(r: Reverse, op: Op, d: int) -> int:
    """Minus the cotangent."""
    del op
    return r.b.neg(d)


def times(operand: int) -> Callable[[Reverse, Op, int], int]:
    """The cotangent times an operand."""
    return lambda r, op, d: r.b.mul(d, r.get(op.operands[operand]))


def scaled(make: Callable[[Reverse, Op], int]) -> Callable[[Reverse, Op, int], int]:
    """The cotangent times a local derivative."""
    return lambda r, op, d: r.b.mul(d, make(r, op))


def out(r: Reverse, op: Op) -> int:
    """The op's own result."""
    return r.get(op.results[0])


def one_minus(r: Reverse, value: int) -> int:
    """1 - value."""
    return r.b.sub(r.b.constant(1.0), value)


def power(r: Reverse, op: Op, d: int) -> int:
    """d * n * a^(n-1)."""
    a, n = (r.get(value) for value in op.operands)
    less = r.b.sub(n, r.b.constant(1.0))
    return r.b.mul(d, r.b.mul(n, r.b.one(ops.Pow(), a, less)))


def no_exponent(r: Reverse, op: Op, d: int) -> int:
    """Exponents are constants."""
    del r, d
    raise InternalError(f"no gradient for the exponent of pow at {op.span}")


def chosen(less_wins: bool) -> Callable[[Reverse, Op, int], int]:
    """The cotangent where a < b, or where not; zero elsewhere."""

    def part(r: Reverse, op: Op, d: int) -> int:
        less = r.b.one(ops.Less(), *(r.get(value) for value in op.operands))
        zero = r.b.constant(0.0)
        return r.b.one(ops.Where(), less, *((d, zero) if less_wins else (zero, d)))

    return part


def where(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Each branch gets the cotangent where it was taken."""
    d, zero = first(cotangents), r.b.constant(0.0)
    condition, a, b = op.operands
    if r.wants(a):
        r.give(a, r.b.one(ops.Where(), r.get(condition), d, zero))
    if r.wants(b):
        r.give(b, r.b.one(ops.Where(), r.get(condition), zero, d))


def add_all(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Every operand gets the cotangent."""
    for operand in op.operands:
        if r.wants(operand):
            r.give(operand, first(cotangents))


def cast(r: Reverse, op: Op, d: int) -> int:
    """The cotangent in the operand's dtype."""
    return r.b.cast(d, r.kind(op.operands[0]).dtype)


def rename(r: Reverse, op: Op, d: int) -> int:
    """The cotangent under the old names."""
    assert isinstance(op.attrs, ops.Rename)
    return r.b.rename(d, {new: old for old, new in op.attrs.pairs})


def divisor(r: Reverse, op: Op, d: int) -> int:
    """-d * (a / b) / b."""
    return r.b.neg(r.b.div(r.b.mul(d, out(r, op)), r.get(op.operands[1])))


def cube(r: Reverse, op: Op) -> int:
    """-1/2 of the result cubed: the derivative of a^(-1/2)."""
    y = out(r, op)
    return r.b.mul(r.b.mul(r.b.constant(-0.5), y), r.b.mul(y, y))


def sigmoid(r: Reverse, op: Op) -> int:
    """y (1 - y)."""
    y = out(r, op)
    return r.b.mul(y, one_minus(r, y))


def tanh(r: Reverse, op: Op) -> int:
    """1 - y^2."""
    y = out(r, op)
    return one_minus(r, r.b.mul(y, y))


def erf(r: Reverse, op: Op) -> int:
    """2/sqrt(pi) exp(-a^2)."""
    a = r.get(op.operands[0])
    return r.b.mul(r.b.constant(2.0 / math.sqrt(math.pi)), r.b.exp(r.b.neg(r.b.mul(a, a))))


def reduce_sum(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Every summand gets the cotangent, which lacks the dims summed over."""
    r.give(op.operands[0], first(cotangents), narrow=True)


def no_rule(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Ops that no gradient flows through; the frontend puts a `stop` where one would."""
    del r, cotangents
    raise InternalError(f"{op.kind} at {op.span} has no gradient")


def dot(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """d_a contracts what b has of its own, d_b what a has; the order gives the operand's layout."""
    assert isinstance(op.attrs, ops.Dot)
    d = r.exact(op.results[0], first(cotangents))
    for mine, other in (op.operands, op.operands[::-1]):
        if not r.wants(mine):
            continue
        wanted, have = r.kind(mine), r.kind(other)
        over = tuple(name for name in have.names if name not in wanted.names)
        pair = (d, r.get(other))
        if not over:
            r.give(mine, r.b.mul(*pair))
            continue
        kinds = [r.b.types[value] for value in pair]
        attrs = ops.Dot(over)
        forward = attrs.infer(kinds, r.env)[0].names == wanted.names
        r.give(mine, r.b.one(attrs, *(pair if forward else pair[::-1])))


def take(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Rows are added up where they came from."""
    assert isinstance(op.attrs, ops.Take)
    table, index = op.operands
    d = r.exact(op.results[0], first(cotangents))
    r.give(table, r.b.one(ops.Put(r.kind(table).dim(op.attrs.dim)), r.get(index), d))


def put(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Values read the cotangent of where they went."""
    assert isinstance(op.attrs, ops.Put)
    index, value = op.operands
    d = r.exact(op.results[0], first(cotangents))
    r.give(value, r.b.one(ops.Take(op.attrs.dim.name), d, r.get(index)))


def pick(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """The cotangent at the position picked, zero elsewhere."""
    assert isinstance(op.attrs, ops.Pick)
    x, index = op.operands
    d = r.exact(op.results[0], first(cotangents))
    r.give(x, r.b.one(ops.Spread(r.kind(x).dim(op.attrs.dim)), d, r.get(index)))


def spread(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """The cotangent at the position."""
    assert isinstance(op.attrs, ops.Spread)
    value, index = op.operands
    d = r.exact(op.results[0], first(cotangents))
    r.give(value, r.b.one(ops.Pick(op.attrs.dim.name), d, r.get(index)))


def rope(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """Rotations are orthogonal: turn back."""
    attrs = op.attrs
    assert isinstance(attrs, ops.Rope)
    back = ops.Rope(attrs.along, attrs.dim, attrs.theta, attrs.layout, not attrs.inverse)
    r.give(op.operands[0], r.b.one(back, r.exact(op.results[0], first(cotangents))))


def attend(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """By attend_grad, from the result and its log-sum-exp."""
    attrs = op.attrs
    assert isinstance(attrs, ops.Attend)
    if cotangents[1] is not None:
        raise InternalError("attend's log-sum-exp has no gradient")
    back = ops.AttendGrad(
        attrs.along, attrs.heads, attrs.kv_heads, attrs.dim, attrs.scale, attrs.mask
    )
    given = [r.get(value) for value in (*op.operands, *op.results)]
    found = r.b.emit(back, *given, r.exact(op.results[0], first(cotangents)))
    for operand, contribution in zip(op.operands, found, strict=True):
        if r.wants(operand):
            r.give(operand, contribution)


def scan(r: Reverse, op: Op, cotangents: Cotangents) -> None:
    """By the reversed scan that was made with the forward one."""
    r.reversed_scan(op, cotangents)


GRADIENTS: Final[Mapping[type[Attrs], Rule]] = {
    ops.Add: elementwise(same, same),
    ops.AddN: add_all,
    ops.Attend: attend,
    ops.Cast: elementwise(cast),
    ops.Cos: elementwise(
        scaled(lambda r, op: r.b.neg(r.b.one(ops.Sin(), r.get(op.operands[0]))))
    ),
    ops.Div: elementwise(lambda r, op, d: r.b.div(d, r.get(op.operands[1])), divisor),
    ops.Dot: dot,
    ops.Erf: elementwise(scaled(erf)),
    ops.Exp: elementwise(scaled(out)),
    ops.Log: elementwise(lambda r, op, d: r.b.div(d, r.get(op.operands[0]))),
    ops.Maximum: elementwise(chosen(less_wins=False), chosen(less_wins=True)),
    ops.Minimum: elementwise(chosen(less_wins=True), chosen(less_wins=False)),
    ops.Mul: elementwise(times(1), times(0)),
    ops.Neg: elementwise(negated),
    ops.Pick: pick,
    ops.Pow: elementwise(power, no_exponent),
    ops.Put: put,
    ops.ReduceMax: no_rule,
    ops.ReduceSum: reduce_sum,
    ops.Rename: elementwise(rename),
    ops.Rope: rope,
    ops.Rsqrt: elementwise(scaled(cube)),
    ops.Scan: scan,
    ops.Sigmoid: elementwise(scaled(sigmoid)),
    ops.Sin: elementwise(scaled(lambda r, op: r.b.one(ops.Cos(), r.get(op.operands[0])))),
    ops.Spread: spread,
    ops.Sqrt: elementwise(
        lambda r, op, d: r.b.div(r.b.mul(d, r.b.constant(0.5)), out(r, op))
    ),
    ops.Sub: elementwise(same, negated),
    ops.Take: take,
    ops.Tanh: elementwise(scaled(tanh)),
    ops.Transpose: elementwise(same),
    ops.Where: where,
}

CONSTANT: Final[frozenset[type[Attrs]]] = frozenset(
    {ops.Fill, ops.Iota, ops.Less, ops.Random, ops.Stop}
)
"""Ops whose results carry no gradient."""
