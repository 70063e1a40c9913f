"""Optimizers and rates with their arguments filled in, to functions.

Constants are folded, and terms that a zero removes are left out, so that an optimizer without
weight decay costs what one that never had it costs. What is done to each element alone is over host
scalars. An optimizer that mixes elements is over matrices with the dims of `SIDES`, which stand for
those of a parameter; the sizes of these are inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from msgspec import structs

from fllmc.frontend.lowering.emit import Emitter
from fllmc.frontend.semantics.typed import (
    HOST,
    Composite,
    Constant,
    Contract,
    Local,
    Prim,
    Reduce,
    Renamed,
    Size,
    Step,
    Typed,
    Use,
)
from fllmc.frontend.semantics.typed_rules import Repeat, Rule
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.matrices import SIDES, SIZES, side, state_key
from fllmc.ir.program import Function, Role
from fllmc.ir.types import HOST_SCALAR, Sizes, Type, tensor

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
    """(param, grad, states..., rate, step) -> (param, states...), and sizes where it mixes."""
    dims = {"param": ("short", "long"), "grad": ("short", "long")}
    dims |= {state.name: state.dims for state in rule.states}
    roles: dict[str, Role] = dict.fromkeys(dims, "value")
    roles |= dict.fromkeys(("rate", "step", *(SIZES if rule.mixes else ())), "host")
    kinds = {given: tensor("f64", *map(side, sides)) for given, sides in dims.items()}
    kinds["matrix"] = Type("bool")
    outputs = ("param", *(state.name for state in rule.states))
    return _lowered(rule, arguments, name, roles, outputs, kinds if rule.mixes else {})


def lower_states(rules: Sequence[Rule]) -> Function:
    """() -> the first values of the states of each group's optimizer."""
    builder = Builder("optimizer.states", Sizes({}))
    starts = {
        state_key(group, state.name): state.start
        for group, rule in enumerate(rules)
        for state in rule.states
    }
    values = [builder.constant(start) for start in starts.values()]
    return builder.finish(values, tuple(starts))


def lower_rate(rule: Rule, arguments: Constants, name: str = "rate") -> Function:
    """(step, steps) -> rate. Steps count from 1."""
    return _lowered(rule, arguments, name, {"step": "host", "steps": "host"}, ("rate",), {})


def _lowered(
    rule: Rule,
    arguments: Constants,
    name: str,
    roles: Mapping[str, Role],
    outputs: tuple[str, ...],
    kinds: Mapping[str, Type],
) -> Function:
    builder = Builder(name, Sizes(dict.fromkeys(SIDES, 1) if kinds else {}))
    values = {
        given: builder.input(given, kinds.get(given, HOST_SCALAR), role)
        for given, role in roles.items()
    }
    emitter = Emitter(builder, values, {}, "f64", _no_composite, _no_block)
    constants = dict(arguments)
    for step in _unrolled(rule.steps, constants):
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


def _unrolled(steps: Sequence[Step | Repeat], constants: Constants) -> Iterator[Step]:
    """The equations in the order in which they are done."""
    for step in steps:
        if isinstance(step, Step):
            yield step
            continue
        times = fold(step.times, constants).op
        for _ in range(int(times.value) if isinstance(times, Constant) else 0):
            yield from _unrolled(step.steps, constants)


def fold(typed: Typed, constants: Constants) -> Typed:
    """The expression with known names replaced and constant parts computed."""
    if isinstance(typed.op, Local) and typed.op.name in constants:
        return structs.replace(typed, op=Constant(constants[typed.op.name]))
    if isinstance(typed.op, Size):
        return structs.replace(typed, op=Local(typed.op.dim))
    args = tuple(fold(arg, constants) for arg in typed.args)
    if not isinstance(typed.op, Prim):
        return _of_sides(structs.replace(typed, args=args))
    name = typed.op.name
    known = [arg.op.value for arg in args if isinstance(arg.op, Constant)]
    if name == "where" and isinstance(args[0].op, Constant):
        return args[1] if args[0].op.value else args[2]
    if len(known) == len(args):
        value = _computed(name, known)
        if value is not None:
            return structs.replace(typed, op=Constant(value), args=())
    return _simpler(name, args) or structs.replace(typed, args=args)


def _of_sides(typed: Typed) -> Typed:
    """A reduction or renaming of the dims that stand for a parameter's; a mean is divided out."""
    match typed.op:
        case Reduce(name, dims):
            return structs.replace(typed, op=Reduce(name, tuple(map(side, dims))))
        case Contract(dims):
            return structs.replace(typed, op=Contract(tuple(map(side, dims))))
        case Renamed(pairs):
            pairs = tuple((side(old), side(new)) for old, new in pairs)
            return structs.replace(typed, op=Renamed(pairs))
        case Composite("mean", dims):
            mean = structs.replace(typed, op=Reduce("sum", tuple(map(side, dims))))
            for dim in dims:
                mean = Typed(typed.kind, Prim("div"), (mean, Typed(HOST, Local(dim))), typed.span)
            return mean
        case _:
            return typed


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
