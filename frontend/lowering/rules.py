"""Optimizers and rates with their arguments filled in, to functions over host scalars.

Constants are folded, and terms that a zero removes are left out, so that an optimizer without
weight decay costs what one that never had it costs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from msgspec import structs

from fllmc.frontend.lowering.emit import Emitter
from fllmc.frontend.semantics.typed import Composite, Constant, Local, Prim, Rule, Typed, Use
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Function, Role
from fllmc.ir.types import HOST_SCALAR, Sizes

Constants = Mapping[str, float]

BINARY: Mapping[str, Callable[[float, float], float]] = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul": lambda a, b: a * b,
    "div": lambda a, b: a / b,
    "pow": lambda a, b: math.pow(a, b),
    "min": min,
    "max": max,
    "less": lambda a, b: float(a < b),
}
UNARY: Mapping[str, Callable[[float], float]] = {
    "neg": lambda a: -a,
    "abs": abs,
    "cos": math.cos,
    "exp": math.exp,
    "log": math.log,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tanh": math.tanh,
}


def lower_optimizer(rule: Rule, arguments: Constants, name: str) -> Function:
    """(param, grad, states..., rate, step) -> (param, states...)."""
    states = tuple(state for state, _ in rule.states)
    roles: dict[str, Role] = dict.fromkeys(("param", "grad", *states), "value")
    roles |= dict.fromkeys(("rate", "step"), "host")
    return _lowered(rule, arguments, name, roles, ("param", *states))


def lower_states(rule: Rule) -> Function:
    """() -> the first values of the states."""
    builder = Builder("optimizer.states", Sizes({}))
    values = [builder.constant(start) for _, start in rule.states]
    return builder.finish(values, [state for state, _ in rule.states], rule.span)


def lower_rate(rule: Rule, arguments: Constants) -> Function:
    """(step, steps) -> rate. Steps count from 1."""
    return _lowered(rule, arguments, "rate", {"step": "host", "steps": "host"}, ("rate",))


def _lowered(
    rule: Rule,
    arguments: Constants,
    name: str,
    roles: Mapping[str, Role],
    outputs: tuple[str, ...],
) -> Function:
    builder = Builder(name, Sizes({}))
    values = {given: builder.input(given, HOST_SCALAR, role) for given, role in roles.items()}
    emitter = Emitter(builder, values, {}, "f64", _no_composite, _no_block)
    constants = dict(arguments)
    for step in rule.steps:
        folded = fold(step.value, constants)
        constants.pop(step.name, None)
        if isinstance(folded.op, Constant):
            constants[step.name] = folded.op.value
        else:
            values[step.name] = emitter.expr(folded)
    if rule.returned is not None:
        values["rate"] = emitter.expr(fold(rule.returned, constants))
    results = [
        builder.constant(constants[given]) if given in constants else values[given]
        for given in outputs
    ]
    return builder.finish(results, outputs, rule.span)


def fold(typed: Typed, constants: Constants) -> Typed:
    """The expression with known names replaced and constant parts computed."""
    if isinstance(typed.op, Local) and typed.op.name in constants:
        return structs.replace(typed, op=Constant(constants[typed.op.name]))
    if not isinstance(typed.op, Prim):
        return typed
    name, args = typed.op.name, tuple(fold(arg, constants) for arg in typed.args)
    known = [arg.op.value for arg in args if isinstance(arg.op, Constant)]
    if name == "where" and isinstance(args[0].op, Constant):
        return args[1] if args[0].op.value else args[2]
    if len(known) == len(args):
        value = _computed(name, known)
        if value is not None:
            return structs.replace(typed, op=Constant(value), args=())
    return _simpler(name, args) or structs.replace(typed, args=args)


def _computed(name: str, known: list[float]) -> float | None:
    try:
        if name in UNARY:
            return UNARY[name](known[0])
        return BINARY[name](*known) if name in BINARY else None
    except (ArithmeticError, ValueError):
        return None


def _simpler(name: str, args: tuple[Typed, ...]) -> Typed | None:
    """One of the arguments, where a zero or a one makes the operation vanish."""
    values = [arg.op.value if isinstance(arg.op, Constant) else None for arg in args]
    match name, values:
        case ("mul", [0.0, _]) | ("add", [_, 0.0]) | ("sub", [_, 0.0]) | ("mul", [_, 1.0]):
            return args[0]
        case ("div", [_, 1.0]):
            return args[0]
        case ("mul", [_, 0.0]) | ("add", [0.0, _]) | ("mul", [1.0, _]):
            return args[1]
        case _:
            return None


def _no_composite(op: Composite, builder: Builder, args: tuple[int, ...]) -> int:
    raise InternalError(f"{op.name} in a rule")


def _no_block(op: Use, builder: Builder, args: tuple[int, ...]) -> int:
    raise InternalError(f"{op.name} in a rule")
