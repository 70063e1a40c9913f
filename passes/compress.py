"""compress: training -> training. What is kept under a selector is kept in 8 bits.

    compress{selectors=[{selector=body.*.mlp}]}

    %7 = silu(%5)
    ->
    %7 = silu(%5); %8, %9 = quantize{dim=ffn, codes=ffn, blocks=ffn.blocks224, bits=8}(%7)

The forward body of a stack gives codes and scales instead of the value, and the backward body makes
of them what it reads, just before it is first used. Each element is off by half a step at most, the
largest magnitude in its block over 254; so gradients change, and the loss does not.

Blocks lie along the last dim that is not of the data and depend on its size alone, so that they are
the same on every mesh. Statistics and choices are kept exactly.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

from msgspec import Struct, structs

from fllmc.ir.build import Builder
from fllmc.ir.coded import blocks_dim
from fllmc.ir.ops import (
    Attend,
    Cast,
    Dequantize,
    Dispatch,
    Env,
    Quantize,
    Reduce,
    Rename,
    TopK,
    Transpose,
)
from fllmc.ir.program import Function, Level, Program
from fllmc.ir.settings import Compress as Directive
from fllmc.ir.settings import Shard
from fllmc.ir.types import DTYPE_BYTES
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import BlocksCut, CompressesNothing
from fllmc.passes.naming import parts_of, unique
from fllmc.passes.offload import inputs, selected
from fllmc.passes.place.directives import resolve
from fllmc.passes.recompute_policy import all_places
from fllmc.passes.recompute_rewrite import emit_op, own_names
from fllmc.passes.recompute_stacks import Stack, residuals, scan_of, stacks

LARGEST = 256
"""The most elements of a block: their scale adds 1.6 % to their codes."""
SHARED = (16, 8, 4, 2)
"""Numbers of ranks that are to have whole blocks, if a block of LEAST elements allows it."""
LEAST = 64


class Blocks(Struct, frozen=True):
    """How a value is cut: `count` blocks along `dim`, which the dim `name` counts."""

    dim: str
    count: int
    name: str

    def quantize(self) -> Quantize:
        """To codes and scales."""
        return Quantize(self.dim, self.dim, self.name, 8)

    def dequantize(self, dtype: str) -> Dequantize:
        """Back to values."""
        return Dequantize(self.dim, self.dim, self.name, 8, dtype)


class Compress(Pass, frozen=True):
    """Round kept values to 8 bits, as the directives say; `shards` say which ranks share a dim."""

    name: ClassVar[str] = "compress"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "new"

    selectors: tuple[Directive, ...] = ()
    shards: tuple[Shard, ...] = ()

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite the bodies of every stack that keeps something selected."""
        most = resolve(self.shards, cx.mesh, program).layout.most
        ranks = {dim: cx.mesh.extent(axes) for dim, axes in most.items()}
        useful: set[Directive] = set()
        for name, places in all_places(program).items():
            for pair in stacks(program.function(name)):
                function = program.function(name)
                stack = residuals(function, pair.forward, pair.backward)
                chosen = selected(function, stack, program, places[0], self.selectors)
                blocks: dict[int, Blocks] = {}
                for at, rules in chosen.items():
                    found = blocks_of(function, stack, program, at)
                    if found is None:
                        continue
                    useful.update(rules)
                    if found.count % ranks.get(found.dim, 1):
                        cx.report(cut(function, stack, program, at, found, rules[0], ranks))
                        continue
                    blocks[at] = found
                    program = program.with_dim(found.name, found.count)
                if blocks:
                    program = compressed(program.function(name), stack, program, blocks)
        for rule in self.selectors:
            if rule not in useful:
                cx.report(CompressesNothing(rule.span, rule.selector))
        return program


def body_of(function: Function, stack: Stack, program: Program) -> Function:
    """The forward body of a stack."""
    return program.function(scan_of(function.ops[stack.forward]).function)


def blocks_of(function: Function, stack: Stack, program: Program, at: int) -> Blocks | None:
    """How a result of the forward scan is cut; None where it is to be kept exactly."""
    body = body_of(function, stack, program)
    value = body.results[at]
    kind, sizes = body.types[value], program.sizes
    own = [name for name in kind.names if name not in data_dims(program)]
    if not kind.is_float or not own or exact(body, value):
        return None
    size = sizes.size(own[-1])
    count = block_count(size)
    if size + DTYPE_BYTES["f32"] * count >= size * DTYPE_BYTES[kind.dtype]:
        return None
    return Blocks(own[-1], count, blocks_dim(own[-1], size // count))


def data_dims(program: Program) -> set[str]:
    """The dims of the data, and what they are cut into: samples, positions and routed rows."""
    inputs = (
        kind
        for name in program.entries
        for given, kind in zip(
            program.function(name).inputs, program.function(name).types, strict=False
        )
        if given.role == "data"
    )
    found = {name for kind in inputs for name in kind.names} | set(routing_dims(program))
    return found | {part for name in found for part in parts_of(name, program.sizes.dims)}


def routing_dims(program: Program) -> Iterator[str]:
    """The dims of which a router chooses, and those that what it sends on has instead."""
    for function in program.functions:
        for op in function.ops:
            if isinstance(op.attrs, Dispatch):
                yield op.attrs.choices
                yield function.types[op.operands[1]].index
                yield from (dim.name for dim in op.attrs.to)


def exact(body: Function, value: int) -> bool:
    """Whether a value is a statistic or a choice, of which the backward pass wants every bit."""
    makers = {v: op for op in body.ops for v in op.results}
    while value in makers and isinstance(makers[value].attrs, Cast | Rename | Transpose):
        (value,) = makers[value].operands
    if value not in makers:
        return False
    op = makers[value]
    second = isinstance(op.attrs, Attend) and value != op.results[0]
    return second or isinstance(op.attrs, Reduce | TopK)


def block_count(size: int) -> int:
    """The number of blocks of a dim; of even size, one that several ranks can share."""
    least = min(LEAST, max(size // 2, 1))
    for parts in SHARED:
        block = largest_divisor(size // parts) if size % parts == 0 else 0
        if block >= least:
            return size // block
    return size // largest_divisor(size)


def largest_divisor(size: int) -> int:
    """The largest divisor that is no more than LARGEST."""
    return next(n for n in range(min(size, LARGEST), 0, -1) if size % n == 0)


def cut(
    function: Function,
    stack: Stack,
    program: Program,
    at: int,
    blocks: Blocks,
    rule: Directive,
    ranks: Mapping[str, int],
) -> BlocksCut:
    """The warning that a value is left as it is."""
    body = body_of(function, stack, program)
    makers = {value: op.path for op in body.ops for value in op.results}
    path = makers.get(body.results[at], "") or "its input"
    stem = function.ops[stack.forward].path
    return BlocksCut(rule.span, f"{stem}.*.{path}", blocks.dim, blocks.count, ranks[blocks.dim])


def compressed(
    function: Function, stack: Stack, program: Program, blocks: Mapping[int, Blocks]
) -> Program:
    """The program in which these results of the forward scan are handed on in 8 bits."""
    first, second = function.ops[stack.forward], function.ops[stack.backward]
    there, back = scan_of(first), scan_of(second)
    names = own_names(program, there.function, back.function, mark="compressing")
    taken = {old: blocks[at] for old, at in sorted(stack.moved.items()) if at in blocks}
    stop = back.carries + back.slices
    forward = giving(program.function(there.function), names[0], program, blocks)
    backward = taking(program.function(back.function), names[1], program, taken, stop)
    whole = program.with_functions(forward, backward)
    b = Builder(function.name, whole.sizes, whole.signatures)
    mapping = inputs(b, function)
    scales: dict[int, int] = {}
    for at, op in enumerate(function.ops):
        b.path, b.span = op.path, op.span
        given = [mapping[value] for value in op.operands]
        attrs = op.attrs
        if at == stack.forward:
            attrs = structs.replace(there, function=forward.name)
        elif at == stack.backward:
            more = [scales[stack.moved[old]] for old in taken]
            given[stop:stop] = more
            attrs = structs.replace(back, function=backward.name, slices=back.slices + len(more))
        made = b.emit(attrs, *given)
        mapping.update(zip(op.results, made, strict=False))
        if at == stack.forward:
            scales = dict(zip(sorted(blocks), made[len(op.results) :], strict=True))
    done = b.finish([mapping[v] for v in function.results], function.outputs, function.span)
    return whole.with_functions(done)


def giving(body: Function, name: str, program: Program, blocks: Mapping[int, Blocks]) -> Function:
    """The forward body, that gives codes for these results, and their scales behind all others."""
    b = Builder(name, program.sizes, program.signatures)
    mapping = inputs(b, body)
    wanted = {body.results[at]: found for at, found in blocks.items()}
    made: dict[int, tuple[int, ...]] = {}

    def round_off(values: Sequence[int]) -> None:
        for value in values:
            if value in wanted:
                made[value] = b.emit(wanted[value].quantize(), mapping[value])

    round_off(range(len(body.inputs)))
    for op in body.ops:
        emit_op(b, op, mapping)
        round_off(op.results)
    results = [
        made[value][0] if at in blocks else mapping[value] for at, value in enumerate(body.results)
    ]
    outputs = list(body.outputs)
    for at in sorted(blocks):
        results.append(made[body.results[at]][1])
        outputs.append(unique(f"{body.outputs[at]}.scales", outputs))
    return b.finish(results, outputs, body.span)


def taking(
    body: Function, name: str, program: Program, taken: Mapping[int, Blocks], stop: int
) -> Function:
    """The backward body, that is given codes for these inputs, and scales before input `stop`."""
    b = Builder(name, program.sizes, program.signatures)
    mapping: dict[int, int] = {}
    env, names = Env(program.sizes, {}), [given.name for given in body.inputs]
    coded = {old: found.quantize().infer([body.types[old]], env) for old, found in taken.items()}
    scales: dict[int, int] = {}

    def add_scales() -> None:
        for old, (_, kind) in coded.items():
            names.append(unique(f"{body.inputs[old].name}.scales", names))
            scales[old] = b.input(names[-1], kind)

    for number, given in enumerate(body.inputs):
        if number == stop:
            add_scales()
        kind = coded[number][0] if number in coded else body.types[number]
        mapping[number] = b.input(given.name, kind, given.role)
    if stop == len(body.inputs):
        add_scales()
    stored = {old: (mapping[old], scales[old]) for old in coded}

    def restore(used: Sequence[int]) -> None:
        for value in dict.fromkeys(used):
            if value in stored:
                dtype = body.types[value].dtype
                mapping[value] = b.one(taken[value].dequantize(dtype), *stored.pop(value))

    for op in body.ops:
        b.path, b.span = op.path, op.span
        restore(op.operands)
        emit_op(b, op, mapping)
    restore(body.results)
    return b.finish([mapping[v] for v in body.results], body.outputs, body.span)
