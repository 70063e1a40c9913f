"""differentiate: training -> training. Add the function `gradient` to the loss in `forward`, or in
`forward.objective` where there are penalties.

    func forward(params, data) -> (loss, count)
    ->
    func gradient(params, data, seed: f32[]) -> (loss, count, grad.NAME for each trainable NAME)

Reverse mode. `seed` is the cotangent of the loss. Each op has its backward ops under its own path,
those for its input apart from those for its weight; ops that no trainable parameter leads to have
none. A stack's scan becomes a scan over `LAYER.forward`, which also stacks the values that are
needed again, and one in the other direction over `LAYER.backward`:

    %4 = scan{function=layer,over=layers,carries=1,slices=2}(%0, %1, %2)
    ->
    %4, %5, %6 = scan{function=layer.forward,over=layers,carries=1,slices=2}(%0, %1, %2)
    %8, %9 = scan{function=layer.backward,over=layers,carries=1,slices=3,reverse=true}(%7, ...)

Its carries are the cotangents of the forward carries, then gradients of what all layers share,
summed up from zero; its stacked results are the gradients of the slices.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import Scan, Signature
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.span import NOWHERE
from fllmc.passes.apply_loss import FORWARD, OBJECTIVE
from fllmc.passes.base import Context, Pass
from fllmc.passes.gradient_site import written_out, zero
from fllmc.passes.inline import equations, reachable
from fllmc.passes.naming import unique
from fllmc.passes.reverse import Bodies, Body, Cotangent, Draft, Key, Reverse, Saved, Stacked
from fllmc.passes.training_errors import NothingTrains

GRADIENT = "gradient"


class Differentiate(Pass, frozen=True):
    """Add `gradient`: the loss with its gradients to the trainable parameters."""

    name: ClassVar[str] = "differentiate"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    def run(self, program: Program, cx: Context) -> Program:
        """The program with `gradient` as a further entry."""
        if not any(parameter.trainable for parameter in program.parameters):
            cx.report(NothingTrains(NOWHERE, len(program.parameters)))
        bodies = ScanBodies(program)
        gradient = whole_gradient(program, bodies)
        functions = (*bodies.functions.values(), gradient)
        entries = (GRADIENT, *program.entries)
        program = structs.replace(program, functions=functions, entries=entries)
        used = reachable(program, (*entries, *equations(program)))
        return program.with_functions(drop=tuple(f.name for f in functions if f.name not in used))


def whole_gradient(program: Program, bodies: Bodies) -> Function:
    """`gradient` of the program."""
    known = {function.name for function in program.functions}
    forward = program.function(OBJECTIVE if OBJECTIVE in known else FORWARD)
    trained = [parameter.name for parameter in program.parameters if parameter.trainable]
    wanted = {n for n, given in enumerate(forward.inputs) if given.name in trained}
    draft = Reverse(forward, bodies.active(forward, wanted), bodies).run(
        [forward.outputs.index("loss")]
    )
    b = Builder(GRADIENT, program.sizes, signatures(bodies))
    names = {given.name for given in forward.inputs}
    mapping, extras = replayed(b, forward, draft)
    b.path, b.span = "", NOWHERE
    loss = forward.types[forward.results[forward.outputs.index("loss")]]
    seed = b.input(unique("seed", names), loss)
    operands = [
        seed if isinstance(key, Cotangent) else fetched(key, mapping, extras) for key in draft.keys
    ]
    found = dict(zip(draft.gradients, b.copy(draft.function, operands), strict=True))
    results = [mapping[value] for value in forward.results]
    for name in trained:
        number = forward.input_number(name)
        kind = forward.types[number]
        b.path = name
        results.append(written_out(b, found[number], kind) if number in found else zero(b, kind))
    outputs = (*forward.outputs, *(f"grad.{name}" for name in trained))
    return b.finish(results, outputs, forward.span)


def signatures(bodies: Bodies) -> dict[str, Signature]:
    """The signatures of all functions."""
    return {name: function.signature for name, function in bodies.functions.items()}


def replayed(
    b: Builder, function: Function, draft: Draft
) -> tuple[dict[int, int], dict[int, tuple[int, ...]]]:
    """The forward function's inputs and ops, its scans with what they save.

    Gives the new numbers of its values, and those of the further results of each scan.
    """
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    extras: dict[int, tuple[int, ...]] = {}
    for at, op in enumerate(function.ops):
        b.path, b.span = op.path, op.span
        attrs = op.attrs
        if isinstance(attrs, Scan) and at in draft.stacks:
            attrs = structs.replace(attrs, function=draft.stacks[at].function)
        results = b.emit(attrs, *(mapping[value] for value in op.operands))
        mapping.update(zip(op.results, results, strict=False))
        extras[at] = results[len(op.results) :]
    return mapping, extras


def fetched(key: Saved, mapping: dict[int, int], extras: dict[int, tuple[int, ...]]) -> int:
    """The number of a saved value in a replayed function."""
    return mapping[key.value] if key.scan < 0 else extras[key.scan][key.value]


class ScanBodies(Bodies):
    """Makes the forward and backward bodies of scans."""

    def __init__(self, program: Program) -> None:
        self.functions = {function.name: function for function in program.functions}
        self.sizes = program.sizes

    def body(self, op: Op, attrs: Scan, active: set[int], given: frozenset[int]) -> Body:
        """A scan's body. The carries with a cotangent are those of any run, not of the last."""
        function = self.functions[attrs.function]
        inputs = self.active_inputs(op, attrs, active)
        inside = self.active(function, inputs)
        carried = {position for position in given if position < attrs.carries}
        while True:
            wanted = sorted(carried | {n for n in given if n >= attrs.carries})
            draft = Reverse(function, inside, self).run(wanted)
            more = {position for position in draft.gradients if position < attrs.carries}
            if more <= carried:
                return self.assembled(function, attrs, draft, tuple(sorted(carried)))
            carried |= more

    def assembled(
        self, function: Function, attrs: Scan, draft: Draft, carried: tuple[int, ...]
    ) -> Body:
        """Both bodies, from the draft."""
        stop = attrs.carries + attrs.slices
        saved = [key for key in draft.keys if isinstance(key, Saved)]
        stacked = set(function.results[attrs.carries :])
        shared = [k for k in saved if k.scan < 0 and stop <= k.value < len(function.inputs)]
        slices = [k for k in saved if k.scan < 0 and attrs.carries <= k.value < stop]
        others = [k for k in saved if k not in shared and k not in slices]
        new = [k for k in others if k.scan >= 0 or k.value not in stacked]
        forward = self.forward(function, draft, new)
        handed = [
            key for key in draft.keys if isinstance(key, Cotangent) and key.result >= attrs.carries
        ]
        sliced: list[Key] = [*others, *slices, *handed]
        body = Body(
            Stacked(forward.name, tuple(new)),
            function,
            carried,
            tuple(n for n in draft.gradients if n >= stop),
            tuple(n for n in draft.gradients if attrs.carries <= n < stop),
            (*sliced, *shared),
            len(sliced),
        )
        backward = backward_body(self, function, draft, body)
        self.functions[backward.name] = backward
        return body._replace(backward=backward)

    def forward(self, function: Function, draft: Draft, saved: Sequence[Saved]) -> Function:
        """The forward body, that also gives what is saved; the body itself if that is nothing."""
        if not saved:
            return function
        name = unique(f"{function.name}.forward", self.functions)
        b = Builder(name, self.sizes, signatures(self))
        mapping, extras = replayed(b, function, draft)
        outputs = list(function.outputs)
        for _ in saved:
            outputs.append(unique(f"saved.{len(outputs)}", outputs))
        results = [mapping[value] for value in function.results]
        results += [fetched(key, mapping, extras) for key in saved]
        self.functions[name] = b.finish(results, outputs, function.span)
        return self.functions[name]


def backward_body(bodies: Bodies, function: Function, draft: Draft, body: Body) -> Function:
    """The draft as a scan's body: (carries, slices, shared) -> (carries, stacked)."""
    b = Builder(unique(f"{function.name}.backward", bodies.functions), bodies.sizes)
    b.functions.update(signatures(bodies))
    types = function.types
    names: set[str] = set()

    def named(wish: str) -> str:
        name = unique(wish, names)
        names.add(name)
        return name

    given: dict[Key, int] = {}
    for position in body.carries:
        name = named(f"grad.{function.outputs[position]}")
        given[Cotangent(position)] = b.input(name, types[function.results[position]])
    sums = {n: b.input(named(f"sum.{function.inputs[n].name}"), types[n]) for n in body.shared}
    kinds = dict(zip(draft.keys, draft.function.types, strict=False))
    for key in body.keys:
        own = isinstance(key, Saved) and key.scan < 0 and key.value < len(function.inputs)
        if isinstance(key, Cotangent):
            given[key] = b.input(named(f"grad.{function.outputs[key.result]}"), kinds[key])
        elif own:
            source = function.inputs[key.value]
            given[key] = b.input(named(source.name), kinds[key], source.role)
        else:
            given[key] = b.input(named("saved"), kinds[key])
    found = dict(
        zip(draft.gradients, b.copy(draft.function, [given[k] for k in draft.keys]), strict=True)
    )
    results: list[int] = []
    for n in body.carries:
        results.append(written_out(b, found[n], types[n]) if n in found else zero(b, types[n]))
    for n in body.shared:
        b.path = function.inputs[n].name
        results.append(b.add(sums[n], found[n]))
    for n in body.slices:
        b.path = function.inputs[n].name
        results.append(written_out(b, found[n], types[n]))
    used = (*body.carries, *body.shared, *body.slices)
    return b.finish(results, [f"grad.{function.inputs[n].name}" for n in used], function.span)
