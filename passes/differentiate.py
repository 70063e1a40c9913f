"""differentiate: training -> training. The gradient of the loss, as ops.

    forward(params, data) -> (loss, count)
    ->
    gradient(params, data, seed) -> (loss, count, grad.embedding, grad.body.attn.wq, ...)

where `seed` is the cotangent of the loss. Only ops between the loss and a trainable parameter get
gradient ops. A scan becomes a forward scan that also stacks its residuals, the forward values that
the backward needs, and a scan the other way round over a backward body.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import Cast, Fill, Iota, Scan
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Type
from fllmc.passes.base import Context, Pass
from fllmc.passes.gradients import CONSTANT, GRADIENTS
from fllmc.passes.reverse import Reverse, ScanGradient


def wanted_values(function: Function, inputs: set[int], program: Program) -> set[int]:
    """Float values that depend on the given inputs through differentiable ops."""
    found = set(inputs)
    for op in function.ops:
        if type(op.attrs) in CONSTANT or not any(value in found for value in op.operands):
            continue
        if isinstance(op.attrs, Scan):
            body = program.function(op.attrs.function)
            inner = wanted_in_body(body, op, found, program)
            results = [inner_value in inner for inner_value in body.results]
            found.update(v for v, yes in zip(op.results, results, strict=True) if yes)
        else:
            found.update(v for v in op.results if function.types[v].is_float)
    return found


def wanted_in_body(body: Function, op: Op, outer: set[int], program: Program) -> set[int]:
    """The wanted values of a scan body; a carry is wanted when any run makes it so."""
    assert isinstance(op.attrs, Scan)
    inputs = {k for k, value in enumerate(op.operands) if value in outer}
    while True:
        found = wanted_values(body, inputs, program)
        more = {k for k in range(op.attrs.carries) if body.results[k] in found} - inputs
        if not more:
            return found
        inputs |= more


class BodyGradient:
    """Makes the backward function of one scan."""

    def __init__(self, op: Op, caller: Function, outer: set[int], program: Program):
        assert isinstance(op.attrs, Scan)
        self.op, self.attrs, self.caller, self.program = op, op.attrs, caller, program
        self.body = program.function(op.attrs.function)
        self.wanted = wanted_in_body(self.body, op, outer, program)
        self.b = Builder(f"{self.body.name}.backward", program.sizes, program.signatures)
        self.imported: dict[int, int] = {}
        self.residuals: list[int] = []
        self.constants: list[int] = []
        self.slices: list[int] = []
        self.makers = {v: each for each in self.body.ops for v in each.results}

    def get(self, value: int) -> int:
        """A forward value inside the backward body: an input, made on first use, or a constant."""
        if value in self.imported:
            return self.imported[value]
        stop = self.attrs.carries + self.attrs.slices
        maker = self.makers.get(value)
        if maker is not None and isinstance(maker.attrs, Fill | Iota):
            self.imported[value] = self.b.one(maker.attrs)
            return self.imported[value]
        if maker is not None and isinstance(maker.attrs, Cast) and maker.operands[0] >= (
            self.attrs.carries
        ) and maker.operands[0] < len(self.body.inputs):
            self.imported[value] = self.b.one(maker.attrs, self.get(maker.operands[0]))
            return self.imported[value]
        if stop <= value < len(self.body.inputs):
            self.constants.append(value)
            name, role = self.body.inputs[value].name, self.body.inputs[value].role
        else:
            self.slices.append(value)
            name, role = f"kept.{value}", "value"
            if value < len(self.body.inputs):
                name, role = self.body.inputs[value].name, self.body.inputs[value].role
            if not self.attrs.carries <= value < stop:
                self.residuals.append(value)
                role = "value"
        self.imported[value] = self.b.input(name, self.body.types[value], role)
        return self.imported[value]

    def make(self) -> ScanGradient:
        """Walk the body backward and put the new function's inputs in order."""
        attrs, body, b = self.attrs, self.body, self.b
        stop = attrs.carries + attrs.slices
        carries = [k for k in range(attrs.carries) if k in self.wanted]
        shared = [k for k in range(stop, len(body.inputs)) if k in self.wanted]
        used = {v for each in self.caller.ops for v in each.operands} | set(self.caller.results)
        incoming = [
            k
            for k in range(attrs.carries, len(body.results))
            if body.results[k] in self.wanted and self.op.results[k] in used
        ]
        reverse = Reverse(body, self.wanted, b, self.get)
        carried = [b.input(f"d.{body.inputs[k].name}", body.types[k]) for k in carries]
        sums = [b.input(f"sum.{body.inputs[k].name}", body.types[k]) for k in shared]
        for k, value in zip(carries, carried, strict=True):
            reverse.give(body.results[k], value)
        stacked = [b.input(f"d.{body.outputs[k]}", body.types[body.results[k]]) for k in incoming]
        for k, value in zip(incoming, stacked, strict=True):
            reverse.give(body.results[k], value)
        reverse.walk(GRADIENTS)
        gradients = [k for k in range(attrs.carries, stop) if k in self.wanted]
        results = [reverse.exact(k, reverse.cotangent(k)) for k in carries]
        for k, total in zip(shared, sums, strict=True):
            found = reverse.cotangent(k)
            results.append(total if found is None else b.add(total, reverse.exact(k, found)))
        results += [reverse.exact(k, reverse.cotangent(k)) for k in gradients]
        order = [
            *carried,
            *sums,
            *(self.imported[v] for v in self.slices),
            *stacked,
            *(self.imported[v] for v in self.constants),
        ]
        b.order_inputs(order)
        names = [f"d.{body.inputs[k].name}" for k in (*carries, *shared, *gradients)]
        function = b.finish(results, names, body.span)
        return ScanGradient(
            function, self.forward(), self.residuals, carries, shared,
            self.slices, incoming, self.constants, gradients, {},
        )  # fmt: skip

    def forward(self) -> Function:
        """The body with the residuals as further results."""
        names = [*self.body.outputs, *(f"kept.{value}" for value in self.residuals)]
        return msgspec.structs.replace(
            self.body,
            name=f"{self.body.name}.forward",
            results=(*self.body.results, *self.residuals),
            outputs=tuple(names),
        )


def gradient_function(program: Program) -> tuple[Function, list[Function]]:
    """`gradient`, and the new bodies of its scans."""
    forward = program.function("forward")
    trainable = {p.name for p in program.parameters if p.trainable}
    inputs = {k for k, given in enumerate(forward.inputs) if given.name in trainable}
    wanted = wanted_values(forward, inputs, program)
    b = Builder("gradient", program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, forward.types[number], given.role)
        for number, given in enumerate(forward.inputs)
    }
    loss = forward.results[0]
    seed = b.input("seed", Type(forward.types[loss].dtype))
    reverse = Reverse(forward, wanted, b, mapping.__getitem__)
    bodies: list[Function] = []
    for op in forward.ops:
        b.path, b.span = op.path, op.span
        operands = [mapping[value] for value in op.operands]
        if isinstance(op.attrs, Scan) and any(value in wanted for value in op.results):
            made = BodyGradient(op, forward, wanted, program).make()
            bodies += [made.forward, made.function]
            b.functions.update({f.name: f.signature for f in (made.forward, made.function)})
            attrs = msgspec.structs.replace(op.attrs, function=made.forward.name)
            results = b.emit(attrs, *operands)
            for residual, value in zip(made.residuals, results[len(op.results) :], strict=True):
                made.stacked[residual] = -1 - value
                mapping[-1 - value] = value
            reverse.scans[op.results[0]] = made
        else:
            results = b.emit(op.attrs, *operands)
        mapping.update(zip(op.results, results, strict=False))
    reverse.give(loss, seed)
    reverse.walk(GRADIENTS)
    b.path = ""
    ordered = [p.name for p in program.parameters if p.trainable]
    numbers = [forward.input_number(name) for name in ordered]
    gradients = [reverse.exact(number, reverse.cotangent(number)) for number in numbers]
    results = [*(mapping[value] for value in forward.results), *gradients]
    outputs = [*forward.outputs, *(f"grad.{name}" for name in ordered)]
    return b.finish(results, outputs, forward.span), bodies


class Differentiate(Pass, frozen=True):
    """Add the function `gradient` beside `forward`."""

    name: ClassVar[str] = "differentiate"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    def run(self, program: Program, cx: Context) -> Program:
        """Differentiate the loss of `forward`."""
        del cx
        function, bodies = gradient_function(program)
        return program.with_functions(function, *bodies)
