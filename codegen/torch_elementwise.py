"""Elementwise ops as torch calls that write into a given tensor, and as host arithmetic.

A rule gets the operands' texts, whether each is a Python float, and the name to write to. It reads
each operand before the first write to the result, or reads it only as the result itself, since the
result may share storage with an operand that dies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

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
    Neg,
    Pow,
    Rsqrt,
    Sigmoid,
    Sin,
    Sqrt,
    Stop,
    Sub,
    Tanh,
    Where,
)


class Operand(NamedTuple):
    """An operand's text; `host` when it is a Python float and not a tensor."""

    text: str
    host: bool


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
    shown = [f"rt.number({x.text}, {out})" if x.host else x.text for x in a[1:]]
    return [f"torch.where({a[0].text}, {shown[0]}, {shown[1]}, out={out})"]


def add_all(a: Sequence[Operand], out: str) -> list[str]:
    """The sum of all, in order; only the first may share storage with the result."""
    if len(a) == 1:
        return [f"{out}.copy_({a[0].text})"]
    first = commutative("add")(a[:2], out)
    return [*first, *(f"{out}.add_({x.text})" for x in a[2:])]


ELEMENTWISE: Final[Mapping[type[Attrs], Rule]] = {
    Add: commutative("add"),
    AddN: add_all,
    Cast: lambda a, out: [f"{out}.copy_({a[0].text})"],
    Cos: unary("cos"),
    Div: divide,
    Erf: unary("erf"),
    Exp: unary("exp"),
    Less: less,
    Log: unary("log"),
    Maximum: clamp("maximum", "clamp_min"),
    Minimum: clamp("minimum", "clamp_max"),
    Mul: commutative("mul"),
    Neg: unary("neg"),
    Pow: lambda a, out: [f"torch.pow({a[0].text}, {a[1].text}, out={out})"],
    Rsqrt: unary("rsqrt"),
    Sigmoid: unary("sigmoid"),
    Sin: unary("sin"),
    Sqrt: unary("sqrt"),
    Stop: lambda a, out: [f"{out}.copy_({a[0].text})"],
    Sub: subtract,
    Tanh: unary("tanh"),
    Where: where,
}

HOST: Final[Mapping[type[Attrs], str]] = {
    Add: "({0} + {1})",
    AddN: "sum(({all},))",
    Cast: "{0}",
    Cos: "math.cos({0})",
    Div: "({0} / {1})",
    Erf: "math.erf({0})",
    Exp: "math.exp({0})",
    Less: "({0} < {1})",
    Log: "math.log({0})",
    Maximum: "max({0}, {1})",
    Minimum: "min({0}, {1})",
    Mul: "({0} * {1})",
    Neg: "(-{0})",
    Pow: "({0} ** {1})",
    Rsqrt: "(1.0 / math.sqrt({0}))",
    Sigmoid: "(1.0 / (1.0 + math.exp(-{0})))",
    Sin: "math.sin({0})",
    Sqrt: "math.sqrt({0})",
    Stop: "{0}",
    Sub: "({0} - {1})",
    Tanh: "math.tanh({0})",
    Where: "({1} if {0} else {2})",
}


def host_text(attrs: Attrs, operands: Sequence[str]) -> str:
    """A host op as Python text, folded to a number when all operands are numbers."""
    text = HOST[type(attrs)].format(*operands, all=", ".join(operands))
    if any(part[0].isalpha() for part in operands):
        return text
    # The text is arithmetic on number literals that this module wrote itself.
    value = eval(text, {"__builtins__": {}, "math": math, "max": max, "min": min, "sum": sum})
    return repr(value)
