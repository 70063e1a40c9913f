"""accumulate: training -> training. Gradients of a whole batch, in micro-batches.

    gradient(params, data, seed) -> (loss, count, grad...)
    ->
    accumulated(params, data) -> (loss, grad...)

The batch is cut into `microbatches` parts, which a scan works through with one sum for each
gradient. All of them get the same seed, one over the number of tokens counted in the whole batch,
so that the loss is one mean and never a mean of means. Where a gradient is a stacked result of a
backward scan, its sum goes through that scan as a slice, so that each layer adds to it in place.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Type
from fllmc.ir.ops.structure import stack_of
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import IndivisibleMicrobatches

MICROBATCHES = "microbatches"


def gradients_of(function: Function) -> Mapping[str, int]:
    """The gradient values of `gradient`, by the name of their parameter."""
    pairs = zip(function.outputs, function.results, strict=True)
    return {name[5:]: value for name, value in pairs if name.startswith("grad.")}


def seed_of(b: Builder, weights: int, loss_type: Type) -> int:
    """One over the number of tokens counted."""
    b.path = "loss"
    count = b.sum(weights, b.types[weights].names)
    return b.cast(b.div(b.constant(1.0), count), loss_type.dtype)


def whole_batch(program: Program) -> Function:
    """`accumulated` for one micro-batch."""
    gradient = program.function("gradient")
    b = Builder("accumulated", program.sizes, program.signatures)
    given = {
        each.name: b.input(each.name, gradient.types[number], each.role)
        for number, each in enumerate(gradient.inputs)
        if each.name != "seed"
    }
    seed = seed_of(b, given["weights"], gradient.types[gradient.results[0]])
    results = b.copy(gradient, [given.get(each.name, seed) for each in gradient.inputs])
    return with_mean(b, gradient, results[0], results[2:], seed)


def with_mean(b: Builder, gradient: Function, loss: int, sums: tuple[int, ...], seed: int) -> Function:
    """The finished function: the mean loss and the gradients."""
    b.path = "loss"
    return b.finish([b.mul(loss, seed), *sums], ["loss", *gradient.outputs[2:]], gradient.span)


class Micro:
    """Makes the function of one micro-batch, which adds to the sums that it is given."""

    def __init__(self, program: Program, dtype: str):
        self.program = program
        self.gradient = program.function("gradient")
        self.dtype = dtype
        self.b = Builder("micro", program.sizes, program.signatures)
        self.bodies: list[Function] = []
        uses = [v for op in self.gradient.ops for v in op.operands]
        self.names = {
            value: name for name, value in gradients_of(self.gradient).items() if value not in uses
        }
        self.done: dict[int, int] = {}

    def sum_type(self, value: int) -> Type:
        """The type of a gradient's sum."""
        return msgspec.structs.replace(self.gradient.types[value], dtype=self.dtype)

    def make(self) -> Function:
        """Inputs: loss, sums, data, then parameters and seed; results: loss, sums."""
        gradient, b = self.gradient, self.b
        kinds = [gradient.types[value] for value in gradient.results]
        loss = b.input("sum.loss", kinds[0])
        sums = {
            value: b.input(f"sum.{name[5:]}", self.sum_type(value))
            for name, value in zip(gradient.outputs[2:], gradient.results[2:], strict=True)
        }
        order = [k for k, each in enumerate(gradient.inputs) if each.role == "data"]
        order += [k for k, each in enumerate(gradient.inputs) if each.role != "data"]
        mapping: dict[int, int] = {}
        for k in order:
            mapping[k] = b.input(gradient.inputs[k].name, gradient.types[k], gradient.inputs[k].role)
        for op in gradient.ops:
            self.copy_op(op, mapping, sums)
        b.path = "accumulate"
        results = [b.add(loss, mapping[gradient.results[0]])]
        for value in gradient.results[2:]:
            done = self.done.get(value)
            added = b.cast(mapping[value], self.dtype)
            results.append(b.add(sums[value], added) if done is None else done)
        names = ["sum.loss", *(f"sum.{name[5:]}" for name in gradient.outputs[2:])]
        return b.finish(results, names, gradient.span)

    def copy_op(self, op: Op, mapping: dict[int, int], sums: Mapping[int, int]) -> None:
        """One op of `gradient`; a backward scan takes the sums of its stacked gradients along."""
        b = self.b
        b.path, b.span = op.path, op.span
        operands = [mapping[value] for value in op.operands]
        attrs = op.attrs
        if isinstance(attrs, Scan):
            sunk = [v for v in op.results[attrs.carries :] if v in self.names]
            if sunk:
                body = self.summing(op, attrs, sunk)
                stop = attrs.carries + attrs.slices
                operands[stop:stop] = [sums[value] for value in sunk]
                attrs = msgspec.structs.replace(
                    attrs, function=body.name, slices=attrs.slices + len(sunk)
                )
                results = b.emit(attrs, *operands)
                mapping.update(zip(op.results, results, strict=True))
                self.done.update({value: mapping[value] for value in sunk})
                return
        mapping.update(zip(op.results, b.emit(attrs, *operands), strict=True))

    def summing(self, op: Op, attrs: Scan, sunk: list[int]) -> Function:
        """The scan's body with a slice for each sum, to which it adds its gradient."""
        body = self.program.function(attrs.function)
        inner = Builder(f"{body.name}.sum", self.program.sizes, self.program.signatures)
        stop = attrs.carries + attrs.slices
        given = [
            inner.input(each.name, body.types[k], each.role) for k, each in enumerate(body.inputs)
        ]
        extra: list[int] = []
        results_of = {v: body.results[op.results.index(v)] for v in sunk}
        for value in sunk:
            kind = msgspec.structs.replace(body.types[results_of[value]], dtype=self.dtype)
            extra.append(inner.input(f"sum.{self.names[value]}", kind))
        inner.order_inputs([*given[:stop], *extra, *given[stop:]])
        results = list(inner.copy(body, given))
        inner.path = "accumulate"
        for value, total in zip(sunk, extra, strict=True):
            at = op.results.index(value)
            results[at] = inner.add(total, inner.cast(results[at], self.dtype))
        function = inner.finish(results, body.outputs, body.span)
        self.bodies.append(function)
        self.b.functions[function.name] = function.signature
        return function


def in_parts(program: Program, dtype: str) -> tuple[Function, list[Function]]:
    """`accumulated` as a scan over micro-batches, with the functions that it needs."""
    micro = Micro(program, dtype)
    body = micro.make()
    b = Builder("accumulated", program.sizes, {**program.signatures, body.name: body.signature})
    gradient = program.function("gradient")
    given: dict[str, int] = {}
    for number, each in enumerate(gradient.inputs):
        if each.name == "seed":
            continue
        kind = gradient.types[number]
        kind = stack_of(kind, MICROBATCHES) if each.role == "data" else kind
        given[each.name] = b.input(each.name, kind, each.role)
    given["seed"] = seed_of(b, given["weights"], gradient.types[gradient.results[0]])
    b.path = "accumulate"
    carries = 1 + len(gradient.results) - 2
    zeros = [b.zeros(kind) for kind in body.signature.inputs[:carries]]
    data = [each.name for each in body.inputs if each.role == "data"]
    rest = [each.name for each in body.inputs[carries + len(data) :]]
    scan = Scan(body.name, MICROBATCHES, carries, len(data))
    results = b.emit(scan, *zeros, *(given[name] for name in (*data, *rest)))
    done = with_mean(b, gradient, results[0], results[1:], given["seed"])
    return done, [body, *micro.bodies]


class Accumulate(Pass, frozen=True):
    """Cut the batch into micro-batches and add up their gradients in dtype `reduce`."""

    microbatches: int = 1
    reduce: str = "f32"
    batch: str = "batch"

    name: ClassVar[str] = "accumulate"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    def run(self, program: Program, cx: Context) -> Program:
        """Add `accumulated`."""
        del cx
        if self.microbatches == 1:
            return program.with_functions(whole_batch(program), drop=("gradient",))
        size = program.sizes.size(self.batch)
        if size % self.microbatches:
            raise DiagnosticError(IndivisibleMicrobatches(NOWHERE, self.microbatches, size))
        program = program.with_dim(self.batch, size // self.microbatches)
        program = program.with_dim(MICROBATCHES, self.microbatches)
        done, more = in_parts(program, self.reduce)
        return program.with_functions(done, *more, drop=("gradient",))
