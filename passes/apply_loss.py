"""apply-loss: model -> training, behind `inline`. From logits to a loss that can be trained on.

    func model(params, tokens: vocab[batch, seq]) -> (out: [batch, seq, vocab])
    ->
    func forward(params, tokens, targets: vocab[batch, seq], weights: f32[batch, seq])
        -> (loss: f32[], count: f32[])
    func predict(params, tokens, position: seq[]) -> (logits: [batch, vocab])

Where blocks have penalties the model gives their sum, over some dims of tokens, as `penalty`. It is
added to the likelihood of each token in `forward.objective`, which is `forward` otherwise and what
is trained on, so that `forward` measures the same with and without penalties.

A program that has a function `loss` has that in place of the likelihood: of the logits, and of
further data inputs, one for each of its own; `weights` weigh its values.

`loss` is the sum over all positions of weight times negative log-likelihood, `count` the sum of the
weights. What the loss means is their ratio, taken over all that belongs together: micro-batches and
ranks. So `loss` is never a mean.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import Log, Pick, ReduceMax, Stop
from fllmc.ir.program import Function, Level, Program
from fllmc.ir.types import Type, indices, tensor
from fllmc.passes.base import Context, Pass
from fllmc.passes.inline import LOSS

MODEL, FORWARD, PREDICT = "model", "forward", "predict"
OBJECTIVE = "forward.objective"
"""No name of a block, which have no dots."""
PENALTY = "penalty"
"""The output of `model` that is the sum of penalties."""
BATCH = "batch"
"""The dim of the samples."""


class ApplyLoss(Pass, frozen=True):
    """Add the loss, with `z_loss` times the squared log-partition function (PaLM, section 5)."""

    name: ClassVar[str] = "apply-loss"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    kind: str = "cross_entropy"
    z_loss: float = 0.0

    def run(self, program: Program, cx: Context) -> Program:
        """The program with `forward`, and `predict` where a model has one position per token."""
        model = program.function(MODEL)
        made = [self.forward(model, program)]
        if len(token_dims(model)) == 2 and BATCH in token_dims(model):
            made.append(predict(model, program))
        entries = tuple(function.name for function in made)
        if PENALTY in model.outputs:
            made.append(self.forward(model, program, OBJECTIVE))
        program = structs.replace(program, level="training", entries=entries)
        return program.with_functions(*made, drop=(MODEL, LOSS))

    def forward(self, model: Function, program: Program, name: str = FORWARD) -> Function:
        """The model with its loss, and as the objective with its penalties."""
        b, operands = begun(name, model, program)
        wide = widest(model.signature.results[0].dtype)
        if LOSS in program.signatures:
            return stated(b, operands, model, program.function(LOSS), name == OBJECTIVE)
        vocab, dims = vocab_dim(model), token_dims(model)
        targets = b.input(data_name(b, "targets"), indices(vocab, *dims), "data")
        weights = b.input(data_name(b, "weights"), tensor(wide, *dims), "data")
        logits, *penalties = b.copy(model, operands)
        b.path, b.span = "loss", model.span
        logits = b.cast(logits, wide)
        lse = logsumexp(b, logits, vocab)
        nll = b.sub(lse, b.one(Pick(vocab), logits, targets))
        if self.z_loss:
            nll = b.add(nll, b.mul(b.constant(self.z_loss), b.mul(lse, lse)))
        for penalty in penalties if name == OBJECTIVE else ():
            nll = b.add(nll, penalty)
        loss, count = b.sum(b.mul(weights, nll), dims), b.sum(weights, dims)
        return b.finish([loss, count], ["loss", "count"], model.span)


def stated(
    b: Builder, operands: list[int], model: Function, loss: Function, penalised: bool
) -> Function:
    """The model with a loss that the spec states; a column of its model's tokens is these."""
    logits, *penalties = b.copy(model, operands)
    given = [b.cast(logits, loss.types[0].dtype)]
    known = {i.name: v for i, v in zip(model.inputs, operands, strict=True) if i.role == "data"}
    for number, each in enumerate(loss.inputs[1:], 1):
        name, kind = each.name, loss.types[number]
        given.append(known[name] if name in known else b.input(data_name(b, name), kind, "data"))
    (value,) = b.copy(loss, given, "loss")
    b.path, b.span = "loss", loss.span
    for penalty in penalties if penalised else ():
        value = b.add(value, penalty)
    weights = given[loss.input_number("weights")]
    dims = b.types[weights].names
    sums = b.sum(b.mul(weights, value), dims), b.sum(weights, dims)
    return b.finish(sums, ["loss", "count"], model.span)


def begun(name: str, model: Function, program: Program) -> tuple[Builder, list[int]]:
    """A function with the inputs of the model: parameters first, then data."""
    b = Builder(name, program.sizes, program.signatures)
    kinds = model.signature.inputs
    order = sorted(range(len(kinds)), key=lambda number: model.inputs[number].role != "param")
    made = {n: b.input(model.inputs[n].name, kinds[n], model.inputs[n].role) for n in order}
    return b, [made[number] for number in range(len(kinds))]


def data_name(b: Builder, wish: str) -> str:
    """The name of a data input, apart from any parameter's."""
    taken = {given.name for given in b.inputs}
    return f"data.{wish}" if wish in taken else wish


def vocab_dim(model: Function) -> str:
    """The dim of the logits that the tokens index; the last one if none does.

    Indices of one of their own dims are places, not tokens.
    """
    logits = model.signature.results[0].names
    data = [k for i, k in zip(model.inputs, model.types, strict=False) if i.role == "data"]
    found = [kind.index for kind in data if kind.index in logits and kind.index not in kind.names]
    return found[-1] if found else logits[-1]


def token_dims(model: Function) -> tuple[str, ...]:
    """The dims of the targets: those of the logits less the vocabulary."""
    vocab = vocab_dim(model)
    return tuple(name for name in model.signature.results[0].names if name != vocab)


def widest(dtype: str) -> str:
    """The dtype that a loss over logits of this dtype is computed in."""
    return "f64" if dtype == "f64" else "f32"


def logsumexp(b: Builder, logits: int, over: str) -> int:
    """log(sum(exp(logits))), less the maximum, which cancels and so needs no gradient."""
    top = b.one(Stop(), b.one(ReduceMax((over,)), logits))
    total = b.sum(b.exp(b.sub(logits, top)), (over,))
    return b.add(b.one(Log(), total), top)


def predict(model: Function, program: Program) -> Function:
    """The logits at one position."""
    b, operands = begun(PREDICT, model, program)
    (along,) = (name for name in token_dims(model) if name != BATCH)
    position = b.input(data_name(b, "position"), Type("i64", index=along), "data")
    logits, *_ = b.copy(model, operands)
    b.path, b.span = PREDICT, model.span
    return b.finish([b.one(Pick(along), logits, position)], ["logits"], model.span)
