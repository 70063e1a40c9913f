"""apply-loss: model -> training. From logits to the loss that is trained on.

    model(params, tokens) -> (out)
    ->
    forward(params, tokens, targets, weights) -> (loss, count)
    predict(params, tokens, position) -> (logits)

`loss` is the sum over tokens of weight times negative log likelihood, `count` the sum of weights;
the mean is taken once, over all micro-batches and ranks. With `z-loss`, the squared log of the
softmax's denominator is added (PaLM, Chowdhery et al. 2022, section 5). Logits are widened to at
least f32.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Log, Pick, ReduceMax, Stop
from fllmc.ir.program import Function, Level, Program
from fllmc.ir.types import indices, tensor
from fllmc.passes.base import Context, Pass


def token_dims(model: Function) -> tuple[str, tuple[str, ...]]:
    """The dim that logits score, and their other dims."""
    logits = model.types[model.results[0]]
    named = [model.types[k].index for k, given in enumerate(model.inputs) if given.role == "data"]
    scored = next((name for name in named if name in logits.names), None)
    if scored is None:
        raise InternalError(f"no data input holds indices of a dim of the result {logits}")
    return scored, tuple(name for name in logits.names if name != scored)


def model_inputs(b: Builder, model: Function) -> list[int]:
    """The model's inputs, declared again."""
    return [
        b.input(given.name, model.types[number], given.role)
        for number, given in enumerate(model.inputs)
    ]


def forward_function(program: Program, z_loss: float) -> Function:
    """`forward`: the model with its loss."""
    model = program.function("model")
    scored, rest = token_dims(model)
    b = Builder("forward", program.sizes, program.signatures)
    given = model_inputs(b, model)
    wide = "f64" if model.types[model.results[0]].dtype == "f64" else "f32"
    targets = b.input("targets", indices(scored, *rest), "data")
    weights = b.input("weights", tensor(wide, *rest), "data")
    (out,) = b.copy(model, given)
    b.path, b.span = "loss", model.span
    logits = b.cast(out, wide)
    largest = b.one(Stop(), b.one(ReduceMax((scored,)), logits))
    exps = b.exp(b.sub(logits, largest))
    log_sum = b.add(b.one(Log(), b.sum(exps, (scored,))), largest)
    nll = b.sub(log_sum, b.one(Pick(scored), logits, targets))
    if z_loss:
        nll = b.add(nll, b.mul(b.constant(z_loss), b.mul(log_sum, log_sum)))
    loss = b.sum(b.mul(weights, nll), rest)
    return b.finish([loss, b.sum(weights, rest)], ["loss", "count"], model.span)


def predict_function(program: Program) -> Function | None:
    """`predict`: the logits at one position of each sample; None when samples have no positions."""
    model = program.function("model")
    _, rest = token_dims(model)
    if len(rest) != 2:
        return None
    b = Builder("predict", program.sizes, program.signatures)
    given = model_inputs(b, model)
    position = b.input("position", indices(rest[1]), "data")
    (out,) = b.copy(model, given)
    b.path, b.span = "predict", model.span
    wide = "f64" if b.types[out].dtype == "f64" else "f32"
    logits = b.cast(b.one(Pick(rest[1]), out, position), wide)
    return b.finish([logits], ["logits"], model.span)


class ApplyLoss(Pass, frozen=True):
    """Add the loss to the model."""

    kind: str = "cross_entropy"
    z_loss: float = 0.0

    name: ClassVar[str] = "apply-loss"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    def run(self, program: Program, cx: Context) -> Program:
        """Replace `model` by `forward` and `predict`."""
        del cx
        if self.kind != "cross_entropy":
            raise InternalError(f"no loss {self.kind}")
        made = [forward_function(program, self.z_loss), predict_function(program)]
        functions = [function for function in made if function is not None]
        program = program.with_functions(*functions, drop=("model",))
        entries = tuple(function.name for function in functions)
        return msgspec.structs.replace(program, level="training", entries=entries)
