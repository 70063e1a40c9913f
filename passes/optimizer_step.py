"""optimizer-step: training -> training. From gradients to the whole training step.

    func gradients(params, data) -> (loss, grad.NAME, ...)
    ->
    func train(params, states NAME#m, ..., data, step: f64[] host)
        -> (NAME, NAME#m, ..., loss, grad_norm)

Trainable parameters and their states are replaced; a frozen parameter has no state and is not given
back; where all are frozen there is no `grad_norm`. Gradients are clipped together as
`torch.nn.utils.clip_grad_norm_` does, then the equations of the parameter's optimizer (`optimizer`
or `optimizer.no_decay`, or those of a further group) are written out for each parameter, with its
rate at `step`, which counts from 1.

The loss alone becomes the entry `evaluate`.

What states begin with stays in the program as the function `optimizer.states`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.matrices import equations_of
from fllmc.ir.ops import AddN, Minimum, Sqrt
from fllmc.ir.program import Function, Level, Parameter, Program
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import HOST_SCALAR
from fllmc.passes.accumulate import GRADIENTS
from fllmc.passes.apply_loss import FORWARD, widest
from fllmc.passes.base import Context, Pass
from fllmc.passes.gradient_site import written_out
from fllmc.passes.inline import reachable
from fllmc.passes.step_equations import (
    STATES,
    equations_for,
    state_types,
    with_twins,
)

TRAIN, EVALUATE = "train", "evaluate"
CLIP_EPS = 1e-6
"""What `torch.nn.utils.clip_grad_norm_` adds to the norm that it divides by."""


class OptimizerStep(Pass, frozen=True):
    """Replace `gradients` by `train`, for a run of `steps`. No clipping where `clip` is 0.

    The rate counts steps from `begin` on.
    """

    name: ClassVar[str] = "optimizer-step"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    steps: int = 1
    clip: float = 0.0
    begin: int = 0

    def run(self, program: Program, cx: Context) -> Program:
        """The program with the entries `train`, `evaluate` and, if there is one, `predict`."""
        evaluate = structs.replace(program.function(FORWARD), name=EVALUATE)
        program = with_twins(program)
        names = {GRADIENTS: TRAIN, FORWARD: EVALUATE}
        entries = tuple(names.get(name, name) for name in program.entries)
        train = self.train(program)
        program = structs.replace(program, entries=entries).with_functions(train, evaluate)
        used = reachable(program, (*entries, STATES))
        return program.with_functions(
            drop=tuple(f.name for f in program.functions if f.name not in used)
        )

    def train(self, program: Program) -> Function:
        """The whole step."""
        b = Builder(TRAIN, program.sizes, program.signatures)
        gradients = program.function(GRADIENTS)
        changed = [parameter for parameter in program.parameters if parameter.trainable]
        trained = [parameter for parameter in changed if not parameter.stepped_by]
        operands, states = train_inputs(b, gradients, trained, program)
        step = b.input("step", HOST_SCALAR, "host")
        found = dict(zip(gradients.outputs, b.copy(gradients, operands), strict=True))
        outputs = {"loss": found.pop("loss")}
        totals = {f"grad.{p.name}": found.pop(f"grad.{p.name}") for p in changed if p.stepped_by}
        b.path, b.span = "clip", NOWHERE
        if trained:
            outputs["grad_norm"] = norm(b, list(found.values()))
        scale = self.scale(b, outputs["grad_norm"]) if self.clip and trained else None
        rates = {
            group: self.rate(b, program.function(equations_of(group, "rate")), step)
            for group in sorted({0} | {parameter.group for parameter in trained})
        }
        inputs = dict(zip((i.name for i in gradients.inputs), operands, strict=True))
        updated: dict[str, int] = {}
        for parameter in trained:
            b.path = "clip"
            name = parameter.name
            slope = found[f"grad.{name}"]
            if scale is not None:
                slope = b.mul(b.cast(slope, b.types[scale].dtype), scale)
            given = {"param": inputs[name], "grad": slope, "rate": rates[parameter.group]}
            updated |= update(b, program, parameter, {**given, "step": step, **states[name]})
        for parameter in changed:
            if parameter.stepped_by:
                total = totals[f"grad.{parameter.name}"]
                updated |= stepped(b, program, parameter, inputs[parameter.name], total)
        weights = {name: value for name, value in updated.items() if "#" not in name}
        results = weights | updated | outputs
        return b.finish(list(results.values()), list(results), gradients.span)

    def scale(self, b: Builder, whole: int) -> int:
        """What gradients of this norm are multiplied by."""
        clipped = b.div(b.constant(self.clip), b.add(whole, b.constant(CLIP_EPS)))
        return b.one(Minimum(), b.constant(1.0), clipped)

    def rate(self, b: Builder, function: Function, step: int) -> int:
        """The learning rate of the step, a host scalar."""
        if self.begin:
            step = b.sub(step, b.constant(self.begin))
        given = {"step": step, "steps": b.constant(self.steps)}
        (rate,) = b.copy(function, [given[i.name] for i in function.inputs], "rate")
        return rate


def train_inputs(
    b: Builder, gradients: Function, trained: list[Parameter], program: Program
) -> tuple[list[int], dict[str, dict[str, int]]]:
    """The inputs of `gradients` with states behind the parameters; states by parameter."""
    made: dict[int, int] = {}
    found: dict[str, dict[str, int]] = {}

    def add(params: bool) -> None:
        for number, given in enumerate(gradients.inputs):
            if (given.role == "param") == params:
                made[number] = b.input(given.name, gradients.types[number], given.role)

    add(True)
    for parameter in trained:
        kind = gradients.types[gradients.input_number(parameter.name)]
        found[parameter.name] = {
            state: b.input(f"{parameter.name}#{state}", each, "state")
            for state, each in state_types(program, parameter, kind).items()
        }
    add(False)
    return [made[number] for number in range(len(gradients.inputs))], found


def norm(b: Builder, gradients: list[int]) -> int:
    """The Euclidean norm of all gradients together, in at least f32."""
    squares: list[int] = []
    for gradient in gradients:
        wide = b.cast(gradient, widest(b.types[gradient].dtype))
        squares.append(b.sum(b.mul(wide, wide), b.types[wide].names))
    return b.one(Sqrt(), b.one(AddN(), *squares) if len(squares) > 1 else squares[0])


def equations(b: Builder, function: Function, operands: list[int], dtype: str) -> tuple[int, ...]:
    """The results of equations over scalars, on tensors of a dtype."""
    mapping = dict(enumerate(operands))
    for op in function.ops:
        b.path, b.span = ".".join(filter(None, ("optimizer", op.path))), op.span
        results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
        for value, made in zip(op.results, results, strict=True):
            kind = b.types[made]
            mapping[value] = b.cast(made, dtype) if kind.is_float and kind.dims else made
    b.path, b.span = "optimizer", NOWHERE
    return tuple(mapping[value] for value in function.results)


def update(
    b: Builder, program: Program, parameter: Parameter, given: Mapping[str, int]
) -> dict[str, int]:
    """The parameter and its states after the step, by their names."""
    kind = b.types[given["param"]]
    b.path, b.span = "optimizer", NOWHERE
    values = {**given, "grad": b.cast(given["grad"], kind.dtype)}
    made = equations_for(program, parameter).written(b, values, kind.dtype)
    found: dict[str, int] = {}
    for output, value in made.items():
        name = parameter.name if output == "param" else f"{parameter.name}#{output}"
        own = kind if output == "param" else b.types[given[output]]
        found[name] = written_out(b, b.cast(value, own.dtype), own)
    return found


def stepped(
    b: Builder, program: Program, parameter: Parameter, state: int, total: int
) -> dict[str, int]:
    """The state of a block after the step, by its equation of itself and its total."""
    kind = b.types[state]
    b.path, b.span = "optimizer", NOWHERE
    given = [state, b.cast(total, kind.dtype)]
    (value,) = equations(b, program.function(parameter.stepped_by), given, kind.dtype)
    return {parameter.name: written_out(b, b.cast(value, kind.dtype), kind)}
