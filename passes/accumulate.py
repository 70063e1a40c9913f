"""accumulate: training -> training. The whole step's gradients, over all micro-batches.

    func gradient(params, tokens: vocab[batch, seq], ..., seed) -> (loss, count, grad.NAME, ...)
    ->
    func gradients(params, tokens: vocab[microbatches, batch, seq], ...) -> (loss, grad.NAME, ...)

Here `loss` is the mean: the sum over all micro-batches through the count of all, which is known
before, so `seed` is one over the count and gradients need only be added. They are added, and given,
in `reduce`. With one micro-batch there is no new dim and no scan, unless `always` asks for them.
With more, `batch` shrinks to what one of them has, for all entries, and the scan's body `micro`
carries loss and gradients. The gradients of a stack are added up within its backward scan, which
gets the sums as further slices.

Where micro-batches make data inputs of the step differ from those of other entries, the others' are
called `micro.tokens` and so on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Cast, Scan
from fllmc.ir.ops.structure import stack_of
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Type
from fllmc.passes.apply_loss import BATCH
from fllmc.passes.base import Context, Pass
from fllmc.passes.differentiate import GRADIENT
from fllmc.passes.gradient_site import zero
from fllmc.passes.inline import equations, reachable
from fllmc.passes.naming import unique
from fllmc.passes.training_errors import DimTaken, UnevenMicrobatches

GRADIENTS = "gradients"
MICROBATCHES = "microbatches"


class Accumulate(Pass, frozen=True):
    """Replace the entry `gradient` of one micro-batch by `gradients` of the whole step."""

    name: ClassVar[str] = "accumulate"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    microbatches: int = 1
    reduce: str = "f32"
    always: bool = False

    def run(self, program: Program, cx: Context) -> Program:
        """The program with `gradients`."""
        if self.microbatches == 1 and not self.always:
            made = at_once(program, self.reduce)
        else:
            program = with_microbatches(program, self.microbatches)
            made = by_parts(program, self.reduce)
        kept = tuple(name for name in program.entries if name != GRADIENT)
        program = structs.replace(program, entries=(GRADIENTS, *kept)).with_functions(*made)
        used = reachable(program, (*program.entries, *equations(program)))
        return program.with_functions(
            drop=tuple(f.name for f in program.functions if f.name not in used)
        )


def with_microbatches(program: Program, count: int) -> Program:
    """The program with smaller batches, the new dim, and the other entries' data renamed."""
    if MICROBATCHES in program.sizes.dims:
        raise DiagnosticError(DimTaken(NOWHERE, MICROBATCHES))
    batch = program.sizes.size(BATCH)
    if count < 1 or batch % count:
        raise DiagnosticError(UnevenMicrobatches(NOWHERE, batch, count))
    program = program.with_dim(BATCH, batch // count).with_dim(MICROBATCHES, count)
    step = {given.name for given in program.function(GRADIENT).inputs if given.role == "data"}
    others = [program.function(name) for name in program.entries if name != GRADIENT]
    return program.with_functions(*(renamed(function, step) for function in others))


def renamed(function: Function, names: set[str]) -> Function:
    """The function with these data inputs called `micro.NAME`."""
    inputs = tuple(
        structs.replace(given, name=f"micro.{given.name}") if given.name in names else given
        for given in function.inputs
    )
    return structs.replace(function, inputs=inputs)


def counted(b: Builder, named: Mapping[str, int]) -> int:
    """The sum of all weights."""
    b.path = "loss"
    weights = named["data.weights" if "data.weights" in named else "weights"]
    return b.sum(weights, b.types[weights].names)


def at_once(program: Program, reduce: str) -> tuple[Function, ...]:
    """`gradients` of a single micro-batch, and the bodies of stacks that give them in `reduce`."""
    gradient = program.function(GRADIENT)
    bodies = tuple(
        in_reduced(program, gradient.ops[at], sums, reduce)
        for at, sums in sunk_sums(gradient).items()
    )
    signatures = {**program.signatures, **{body.name: body.signature for body in bodies}}
    b = Builder(GRADIENTS, program.sizes, signatures)
    operands, data = step_inputs(b, gradient, {})
    count = counted(b, data)
    operands.append(b.div(b.constant(1.0), count))
    found = dict(zip(gradient.outputs, b.copy(gradient, operands), strict=True))
    results = [b.div(found.pop("loss"), count)]
    del found["count"]
    for name, value in found.items():
        b.path = name.removeprefix("grad.")
        results.append(in_precision(b, value, reduce))
    return (*bodies, b.finish(results, ["loss", *found], gradient.span))


def in_reduced(program: Program, op: Op, sums: Sums, reduce: str) -> Function:
    """The body of a backward scan that gives these results in `reduce`, as ranks sum them."""
    assert isinstance(op.attrs, Scan)
    body = program.function(op.attrs.function)
    b = Builder(body.name, program.sizes, program.signatures)
    operands = [b.input(g.name, body.types[n], g.role) for n, g in enumerate(body.inputs)]
    results = list(b.copy(body, operands))
    makers = {value: made for made in body.ops for value in made.results}
    for number in sums:
        maker = makers.get(body.results[number])
        b.path = maker.path if maker else ""
        results[number] = in_precision(b, results[number], reduce)
    return b.finish(results, body.outputs, body.span)


def step_inputs(
    b: Builder, gradient: Function, stacks: Mapping[str, Type]
) -> tuple[list[int], dict[str, int]]:
    """The inputs of `gradient` but for the seed, some stacked; and those of data by name."""
    operands: list[int] = []
    data: dict[str, int] = {}
    for number, given in enumerate(gradient.inputs[:-1]):
        kind = stacks.get(given.name, gradient.types[number])
        operands.append(b.input(given.name, kind, given.role))
        if given.role == "data":
            data[given.name] = operands[-1]
    return operands, data


def by_parts(program: Program, reduce: str) -> tuple[Function, ...]:
    """`gradients` as a scan over micro-batches, the scan's body, and the stacks' bodies."""
    gradient = program.function(GRADIENT)
    sunk = sunk_sums(gradient)
    bodies = {at: with_sums(program, gradient.ops[at], sums, reduce) for at, sums in sunk.items()}
    name = unique("micro", program.signatures)
    micro = micro_body(name, program, bodies, sunk, reduce)
    signatures = {**program.signatures, name: micro.signature}
    b = Builder(GRADIENTS, program.sizes, signatures)
    stacks = {
        given.name: stack_of(kind, MICROBATCHES)
        for given, kind in zip(gradient.inputs, gradient.types, strict=False)
        if given.role == "data"
    }
    operands, data = step_inputs(b, gradient, stacks)
    count = counted(b, data)
    seed = b.div(b.constant(1.0), count)
    carries: list[int] = []
    for output, kind in zip(micro.outputs, micro.signature.results, strict=True):
        b.path = output.removeprefix("grad.")
        carries.append(zero(b, kind))
    slices = list(data.values())
    shared = [value for value in operands if value not in slices]
    b.path = ""
    scan = Scan(name, MICROBATCHES, len(carries), len(slices))
    loss, *grads = b.emit(scan, *carries, *slices, *shared, seed)
    b.path = "loss"
    done = b.finish([b.div(loss, count), *grads], micro.outputs, gradient.span)
    return (*bodies.values(), micro, done)


Sums = Mapping[int, str]
"""By position among a scan's results: the output of `gradient` that this is."""


def sunk_sums(gradient: Function) -> dict[int, Sums]:
    """By position of a backward scan: its stacked results that are gradients and nothing else."""
    uses = [*gradient.results, *(value for op in gradient.ops for value in op.operands)]
    names = dict(zip(gradient.results, gradient.outputs, strict=True))
    found: dict[int, Sums] = {}
    for at, op in enumerate(gradient.ops):
        if isinstance(op.attrs, Scan):
            stacked = enumerate(op.results[op.attrs.carries :], op.attrs.carries)
            alone = {n: names[v] for n, v in stacked if v in names and uses.count(v) == 1}
            found.update({at: alone} if alone else {})
    return found


def with_sums(program: Program, op: Op, sums: Sums, reduce: str) -> Function:
    """The body of a backward scan that takes sums as last slices and gives them with its share."""
    attrs = op.attrs
    assert isinstance(attrs, Scan)
    body = program.function(attrs.function)
    stop = attrs.carries + attrs.slices
    makers = {value: made for made in body.ops for value in made.results}
    b = Builder(body.name, program.sizes, program.signatures)
    operands = [b.input(g.name, body.types[n], g.role) for n, g in enumerate(body.inputs[:stop])]
    taken = {given.name for given in body.inputs}
    totals: dict[int, int] = {}
    for result in sums:
        kind = structs.replace(body.types[body.results[result]], dtype=reduce)
        name = unique(f"sum.{body.outputs[result].removeprefix('grad.')}", taken)
        totals[result] = b.input(name, kind)
    rest = enumerate(body.inputs[stop:], stop)
    operands += [b.input(g.name, body.types[n], g.role) for n, g in rest]
    results = list(b.copy(body, operands))
    for result, total in totals.items():
        maker = makers.get(body.results[result])
        b.path = maker.path if maker else ""
        results[result] = b.add(total, in_precision(b, results[result], reduce))
    return b.finish(results, body.outputs, body.span)


def micro_body(
    name: str,
    program: Program,
    bodies: Mapping[int, Function],
    sunk: Mapping[int, Sums],
    reduce: str,
) -> Function:
    """(loss, sums, data, params, seed) -> (loss, sums): one micro-batch's share added."""
    gradient = program.function(GRADIENT)
    signatures = {**program.signatures, **{f.name: f.signature for f in bodies.values()}}
    b = Builder(name, program.sizes, signatures)
    kinds = dict(zip(gradient.outputs, gradient.signature.results, strict=True))
    del kinds["count"]
    sums = {
        output: b.input(f"sum.{output}", kind if output == "loss" else in_dtype(kind, reduce))
        for output, kind in kinds.items()
    }
    mapping: dict[int, int] = {}
    for is_data in (True, False):
        for number, given in enumerate(gradient.inputs):
            if (given.role == "data") == is_data:
                role = "value" if is_data else given.role
                mapping[number] = b.input(given.name, gradient.types[number], role)
    for at, op in enumerate(gradient.ops):
        b.path, b.span = op.path, op.span
        operands, attrs = [mapping[value] for value in op.operands], op.attrs
        if isinstance(attrs, Scan) and at in sunk:
            totals = [sums[output] for output in sunk[at].values()]
            stop = attrs.carries + attrs.slices
            operands[stop:stop] = totals
            attrs = structs.replace(attrs, slices=attrs.slices + len(totals))
        mapping.update(zip(op.results, b.emit(attrs, *operands), strict=True))
    within = {output for found in sunk.values() for output in found.values()}
    makers = {value: op for op in gradient.ops for value in op.results}
    results: list[int] = []
    for output, value in zip(gradient.outputs, gradient.results, strict=True):
        if output in within:
            results.append(mapping[value])
        elif output in sums:
            b.path = makers[value].path if value in makers else ""
            share = in_precision(b, mapping[value], b.types[sums[output]].dtype)
            results.append(b.add(sums[output], share))
    return b.finish(results, list(sums), gradient.span)


def in_precision(b: Builder, value: int, dtype: str) -> int:
    """The value cast; what was cast from that dtype before is taken as it was then."""
    for op in reversed(b.ops):
        if value in op.results:
            narrow = isinstance(op.attrs, Cast) and b.types[op.operands[0]].dtype == dtype
            return op.operands[0] if narrow else b.cast(value, dtype)
    return b.cast(value, dtype)


def in_dtype(kind: Type, dtype: str) -> Type:
    """The type in another dtype."""
    return structs.replace(kind, dtype=dtype)
