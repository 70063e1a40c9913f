"""Elementwise ops as torch calls that write into a given tensor, and as host arithmetic.

A rule gets the operands' texts, whether each is a Python float, and the name to write to. It reads
each operand before the first write to the result, or reads it only as the result itself, since the
result may share storage with an operand that dies.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple, TypeAlias

from fllmc.ir import host_math
from fllmc.ir.ops import (
    Add,
    AddN,
    Attrs,
    Cast,
    Cos,
    Div,
    Erf,
    Exp,
    Less,
    Log,
    Maximum,
    Minimum,
    Mul,
    MulAdd,
    MulSub,
    Neg,
    Pow,
    Rsqrt,
    Sigmoid,
    Silu,
    SiluGrad,
    Sin,
    Sqrt,
    Stop,
    Sub,
    Tanh,
    Where,
)


class Operand(NamedTuple):
    """An operand's text. `host`: it is a Python float and not a tensor. `wide`: it has all dims of
    the result.
    """

    text: str
    host: bool
    wide: bool = True


Rule = Callable[[Sequence[Operand], str], list[str]]


def unary(name: str) -> Rule:
    """torch.NAME(a, out=...)."""
    return lambda a, out: [f"torch.{name}({a[0].text}, out={out})"]


def commutative(name: str) -> Rule:
    """torch.NAME(a, b, out=...), with the tensor first."""

    def rule(a: Sequence[Operand], out: str) -> list[str]:
        first, second = (a[1], a[0]) if a[0].host else (a[0], a[1])
        return [f"torch.{name}({first.text}, {second.text}, out={out})"]

    return rule


def subtract(a: Sequence[Operand], out: str) -> list[str]:
    """a - b; a number minus a tensor is its negative plus the number."""
    if a[0].host:
        return [f"torch.neg({a[1].text}, out={out})", f"{out}.add_({a[0].text})"]
    return [f"torch.sub({a[0].text}, {a[1].text}, out={out})"]


def divide(a: Sequence[Operand], out: str) -> list[str]:
    """a / b; a number by a tensor is the reciprocal times the number."""
    if a[0].host:
        return [f"torch.reciprocal({a[1].text}, out={out})", f"{out}.mul_({a[0].text})"]
    return [f"torch.div({a[0].text}, {a[1].text}, out={out})"]


def clamp(tensor_name: str, number_name: str) -> Rule:
    """The larger or smaller of two, with a call of its own when one is a number."""

    def rule(a: Sequence[Operand], out: str) -> list[str]:
        first, second = (a[1], a[0]) if a[0].host else (a[0], a[1])
        name = number_name if second.host else tensor_name
        return [f"torch.{name}({first.text}, {second.text}, out={out})"]

    return rule


def less(a: Sequence[Operand], out: str) -> list[str]:
    """a < b."""
    if a[0].host:
        return [f"torch.gt({a[1].text}, {a[0].text}, out={out})"]
    return [f"torch.lt({a[0].text}, {a[1].text}, out={out})"]


def where(a: Sequence[Operand], out: str) -> list[str]:
    """b where a else c; numbers become tensors of no dims."""
    b, c = (f"rt.number({x.text}, {out})" if x.host else x.text for x in a[1:])
    if a[0].host:
        return [f"{out}.copy_({b} if {a[0].text} else {c})"]
    return [f"torch.where({a[0].text}, {b}, {c}, out={out})"]


def copy(a: Sequence[Operand], out: str) -> list[str]:
    """The first operand, broadcast and cast to the result."""
    return [f"{out}.fill_({a[0].text})" if a[0].host else f"{out}.copy_({a[0].text})"]


def add_all(a: Sequence[Operand], out: str) -> list[str]:
    """The sum of all, in order; only the first may share storage with the result."""
    if len(a) > 1 and any(x.wide and not x.host for x in a[:2]):
        return [*commutative("add")(a[:2], out), *(f"{out}.add_({x.text})" for x in a[2:])]
    return [*copy(a, out), *(f"{out}.add_({x.text})" for x in a[1:])]


def add_product(sign: int) -> Rule:
    """The base plus or minus a product, in one pass."""

    def rule(a: Sequence[Operand], out: str) -> list[str]:
        base, x, y = a
        if base.host:
            back = [] if sign > 0 else [f"{out}.neg_()"]
            return [*commutative("mul")([x, y], out), *back, f"{out}.add_({base.text})"]
        if x.host or y.host:
            number, tensor = (x, y) if x.host else (y, x)
            alpha = number.text if sign > 0 else f"-({number.text})"
            return [f"torch.add({base.text}, {tensor.text}, alpha={alpha}, out={out})"]
        value = "" if sign > 0 else ", value=-1"
        return [f"torch.addcmul({base.text}, {x.text}, {y.text}{value}, out={out})"]

    return rule


def silu_grad(a: Sequence[Operand], out: str) -> list[str]:
    """The library's own backward of silu."""
    d, x = a
    return [f"torch.ops.aten.silu_backward.grad_input({d.text}, {x.text}, grad_input={out})"]


ELEMENTWISE: Final[Mapping[type[Attrs], Rule]] = {
    Add: commutative("add"),
    AddN: add_all,
    Cast: copy,
    Cos: unary("cos"),
    Div: divide,
    Erf: unary("erf"),
    Exp: unary("exp"),
    Less: less,
    Log: unary("log"),
    Maximum: clamp("maximum", "clamp_min"),
    Minimum: clamp("minimum", "clamp_max"),
    Mul: commutative("mul"),
    MulAdd: add_product(1),
    MulSub: add_product(-1),
    Neg: unary("neg"),
    Pow: lambda a, out: [f"torch.pow({a[0].text}, {a[1].text}, out={out})"],
    Rsqrt: unary("rsqrt"),
    Sigmoid: unary("sigmoid"),
    Silu: lambda a, out: [f"torch.ops.aten.silu.out({a[0].text}, out={out})"],
    SiluGrad: silu_grad,
    Sin: unary("sin"),
    Sqrt: unary("sqrt"),
    Stop: copy,
    Sub: subtract,
    Tanh: unary("tanh"),
    Where: where,
}


class HostOp(NamedTuple):
    """A host op: the function that folds constants, and the text of the same in generated code."""

    value: Callable[..., float]
    text: str


HOST: Final[Mapping[type[Attrs], HostOp]] = {
    Add: HostOp(operator.add, "({0} + {1})"),
    AddN: HostOp(host_math.total, "host.total({all})"),
    Cast: HostOp(host_math.same, "{0}"),
    Cos: HostOp(host_math.cos, "host.cos({0})"),
    Div: HostOp(host_math.div, "host.div({0}, {1})"),
    Erf: HostOp(math.erf, "math.erf({0})"),
    Exp: HostOp(host_math.exp, "host.exp({0})"),
    Less: HostOp(operator.lt, "({0} < {1})"),
    Log: HostOp(host_math.log, "host.log({0})"),
    Maximum: HostOp(host_math.maximum, "host.maximum({0}, {1})"),
    Minimum: HostOp(host_math.minimum, "host.minimum({0}, {1})"),
    Mul: HostOp(operator.mul, "({0} * {1})"),
    MulAdd: HostOp(host_math.mul_add, "({0} + {1} * {2})"),
    MulSub: HostOp(host_math.mul_sub, "({0} - {1} * {2})"),
    Neg: HostOp(host_math.negative, "(-{0})"),
    Pow: HostOp(host_math.power, "host.power({0}, {1})"),
    Rsqrt: HostOp(host_math.rsqrt, "host.rsqrt({0})"),
    Sigmoid: HostOp(host_math.sigmoid, "host.sigmoid({0})"),
    Silu: HostOp(host_math.silu, "host.silu({0})"),
    SiluGrad: HostOp(host_math.silu_grad, "host.silu_grad({0}, {1})"),
    Sin: HostOp(host_math.sin, "host.sin({0})"),
    Sqrt: HostOp(host_math.sqrt, "host.sqrt({0})"),
    Stop: HostOp(host_math.same, "{0}"),
    Sub: HostOp(operator.sub, "({0} - {1})"),
    Tanh: HostOp(math.tanh, "math.tanh({0})"),
    Where: HostOp(host_math.where, "({1} if {0} else {2})"),
}

Number: TypeAlias = float | str
"""A host scalar: a constant, or the name under which generated code holds it."""


def number_text(number: Number) -> str:
    """A host scalar as Python text."""
    if isinstance(number, str):
        return number
    return repr(number) if math.isfinite(number) else f'float("{number}")'


def host_number(attrs: Attrs, operands: Sequence[Number]) -> Number:
    """A host op folded to a constant when all operands are constants, else as text."""
    rule = HOST[type(attrs)]
    constants = [number for number in operands if not isinstance(number, str)]
    if len(constants) == len(operands):
        return rule.value(*constants)
    texts = [number_text(number) for number in operands]
    return rule.text.format(*texts, all=", ".join(texts))
