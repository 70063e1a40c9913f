"""optimizer-step: training -> training. The whole step: gradients, clipping, updates.

    accumulated(params, data) -> (loss, grad...)
    ->
    train(params, states, data, step) -> (params, states, loss, grad_norm)
    evaluate(params, evaluate.tokens, ...) -> (loss, count)

Each trainable parameter is updated by the optimizer's equations, which the frontend made functions
of scalars: instantiated for a tensor they work elementwise. A frozen parameter has no gradient, no
state and no update. Gradients are scaled down together when their norm is above `clip` (Pascanu et
al. 2013), with the 1e-6 in the denominator that PyTorch's clip_grad_norm_ has.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import AddN, Minimum, Sqrt
from fllmc.ir.program import Function, Input, Level, Parameter, Program
from fllmc.ir.types import HOST_SCALAR
from fllmc.passes.base import Context, Pass


def state_name(parameter: str, state: str) -> str:
    """The name of an optimizer state, `body.attn.wq#m`."""
    return f"{parameter}#{state}"


def gradient_norm(b: Builder, gradients: Mapping[str, int]) -> int:
    """The square root of the sum of squares of all elements."""
    b.path = "clip"
    squares = [b.sum(b.mul(g, g), b.types[g].names) for g in gradients.values()]
    return b.one(Sqrt(), b.one(AddN(), *squares))


def train_function(program: Program, clip: float, steps: int) -> Function:
    """`train`."""
    source = program.function("accumulated")
    trained = [p for p in program.parameters if p.trainable]
    states = program.function("optimizer.states").outputs
    b = Builder("train", program.sizes, program.signatures)
    given: dict[str, int] = {}
    for number, each in enumerate(source.inputs):
        if each.role == "param":
            given[each.name] = b.input(each.name, source.types[number], "param")
    for parameter in trained:
        for state in states:
            name = state_name(parameter.name, state)
            given[name] = b.input(name, parameter.type, "state")
    for number, each in enumerate(source.inputs):
        if each.role != "param":
            given[each.name] = b.input(each.name, source.types[number], each.role)
    step = b.input("step", HOST_SCALAR, "host")
    results = b.copy(source, [given[each.name] for each in source.inputs])
    gradients = {p.name: g for p, g in zip(trained, results[1:], strict=True)}
    norm = gradient_norm(b, gradients)
    if clip:
        ratio = b.div(b.constant(clip), b.add(norm, b.constant(1e-6)))
        scale = b.one(Minimum(), ratio, b.constant(1.0))
        gradients = {name: b.mul(g, scale) for name, g in gradients.items()}
    b.path = "rate"
    (rate,) = b.copy(program.function("rate"), [step, b.constant(steps)], "rate")
    new: dict[str, int] = {}
    for parameter in trained:
        new |= updates(b, program, parameter, given, gradients[parameter.name], (rate, step))
    outputs = {**new, "loss": results[0], "grad_norm": norm}
    return b.finish(list(outputs.values()), list(outputs), source.span)


def updates(
    b: Builder,
    program: Program,
    parameter: Parameter,
    given: Mapping[str, int],
    gradient: int,
    scalars: tuple[int, int],
) -> dict[str, int]:
    """The new parameter and states, by name."""
    function = program.function("optimizer" if parameter.decays else "optimizer.no_decay")
    operands = {
        "param": given[parameter.name],
        "grad": b.cast(gradient, parameter.type.dtype),
        "rate": scalars[0],
        "step": scalars[1],
    }
    for each in function.inputs:
        if each.name not in operands:
            operands[each.name] = given[state_name(parameter.name, each.name)]
    results = b.copy(function, [operands[each.name] for each in function.inputs], "optimizer")
    names = [
        parameter.name if output == "param" else state_name(parameter.name, output)
        for output in function.outputs
    ]
    return dict(zip(names, results, strict=True))


def renamed_data(function: Function, name: str) -> Function:
    """An entry whose data inputs have storage of their own, `evaluate.tokens`."""
    inputs = tuple(
        Input(f"evaluate.{each.name}", each.role) if each.role == "data" else each
        for each in function.inputs
    )
    return msgspec.structs.replace(function, name=name, inputs=inputs)


class OptimizerStep(Pass, frozen=True):
    """Make the entries of a run. `clip` 0 does not clip; `steps` is the run's length."""

    clip: float = 0.0
    steps: int = 1

    name: ClassVar[str] = "optimizer-step"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    def run(self, program: Program, cx: Context) -> Program:
        """Add `train`, name the other entries, and drop what is used up."""
        del cx
        train = train_function(program, self.clip, self.steps)
        made = [train, renamed_data(program.function("forward"), "evaluate")]
        if any(function.name == "predict" for function in program.functions):
            made.append(renamed_data(program.function("predict"), "predict"))
        spent = ("forward", "accumulated", "optimizer", "optimizer.no_decay", "rate")
        program = program.with_functions(*made, drop=spent)
        entries = tuple(function.name for function in made)
        return msgspec.structs.replace(program, entries=entries)
