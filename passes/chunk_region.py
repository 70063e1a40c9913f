"""A part of a function run chunk by chunk along a dim: what may be, and the body of the scan.

The region is a convex set of ops. What it takes along the dim is dealt out to the chunks, what it
gives along the dim is taken up from them, and what it sums over the dim is added up.
"""

from __future__ import annotations

from typing import Any

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import (
    AnyAttrs,
    Cast,
    Chunk,
    Dot,
    Elementwise,
    Fill,
    Pick,
    Put,
    ReduceMax,
    ReduceSum,
    Rename,
    Scan,
    Spread,
    Take,
    Transpose,
    Unchunk,
)
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Dim, Type
from fllmc.passes.gradient_site import zero
from fllmc.passes.naming import unique

DIVISIBLE = (
    Elementwise,
    Dot,
    Fill,
    Pick,
    Put,
    ReduceMax,
    ReduceSum,
    Rename,
    Spread,
    Take,
    Transpose,
)
"""Ops that can be done for some positions of a dim at a time, where they do not choose among these
or take their maximum."""

HANDED_ON = (Cast, Rename, Transpose)


class Chunks(msgspec.Struct, frozen=True):
    """Dim `dim` is cut into the positions of `over`, each with the dim `part`; sums are in `reduce`
    where that is wider."""

    dim: str
    part: str
    over: str
    reduce: str


def between(function: Function, seeds: set[int]) -> set[int]:
    """The positions of these ops, and of all on the ways from one of them to another."""
    makers = {value: at for at, op in enumerate(function.ops) for value in op.results}
    before = [{makers[v] for v in op.operands if v in makers} for op in function.ops]
    behind: set[int] = set()
    for at in range(len(function.ops)):
        if at in seeds or before[at] & behind:
            behind.add(at)
    ahead: set[int] = set()
    for at in reversed(range(len(function.ops))):
        if at in seeds or at in ahead:
            ahead.add(at)
            ahead |= before[at]
    return behind & ahead


def with_what_follows(function: Function, region: set[int], dim: str) -> set[int]:
    """The region with the casts and changes of layout that are the only use of a sum that it gives,
    so that sums are added up in the form in which they are wanted."""
    uses = readers(function)
    found = set(region)
    for at, op in enumerate(function.ops):
        if at not in found and isinstance(op.attrs, HANDED_ON):
            (value,) = op.operands
            given = any(value in function.ops[one].results for one in found)
            alone = uses[value] == [at] and value not in function.results
            if given and alone and dim not in function.types[value].names:
                found.add(at)
    return found


def readers(function: Function) -> dict[int, list[int]]:
    """The positions of the ops that take each value."""
    found: dict[int, list[int]] = {value: [] for value in range(len(function.types))}
    for at, op in enumerate(function.ops):
        for value in dict.fromkeys(op.operands):
            found[value].append(at)
    return found


def obstacle(function: Function, region: set[int], dim: str) -> str:
    """Why the region can't be run by chunks of the dim; empty if it can."""
    summed: set[int] = set()
    for at in sorted(region):
        op = function.ops[at]
        kinds = [function.types[value] for value in op.operands]
        has = any(dim in kind.names for kind in kinds)
        if not isinstance(op.attrs, DIVISIBLE) and has:
            return f"{op.kind} at `{op.path}` needs all of `{dim}`"
        if summed.intersection(op.operands) and not isinstance(op.attrs, HANDED_ON):
            return f"{op.kind} at `{op.path}` takes a sum over `{dim}`"
        if isinstance(op.attrs, Pick | ReduceMax) and has and dim not in results_of(function, op):
            return f"{op.kind} at `{op.path}` chooses along `{dim}`"
        if has and dim not in results_of(function, op):
            summed.update(op.results)
        if summed.intersection(op.operands):
            summed.update(op.results)
    return ""


def results_of(function: Function, op: Op) -> tuple[str, ...]:
    """The dims of an op's results."""
    return tuple(name for value in op.results for name in function.types[value].names)


class Flows(msgspec.Struct, frozen=True):
    """What goes into a region and comes out, by value: along the dim (`dealt`, `stacked`), the same
    for all chunks (`shared`), or summed up over them (`sums`)."""

    dealt: tuple[int, ...]
    shared: tuple[int, ...]
    stacked: tuple[int, ...]
    sums: tuple[int, ...]


def flows(function: Function, region: set[int], dim: str) -> Flows:
    """What a region takes and gives."""
    made = {v for at in region for v in function.ops[at].results}
    taken = dict.fromkeys(v for at in sorted(region) for v in function.ops[at].operands)
    outside = {
        v for at, op in enumerate(function.ops) if at not in region for v in op.operands
    } | set(function.results)
    types = function.types
    inputs = [v for v in taken if v not in made]
    given = [v for at in sorted(region) for v in function.ops[at].results if v in outside]
    return Flows(
        tuple(v for v in inputs if dim in types[v].names),
        tuple(v for v in inputs if dim not in types[v].names),
        tuple(v for v in given if dim in types[v].names),
        tuple(v for v in given if dim not in types[v].names),
    )


def in_chunk(attrs: AnyAttrs, dim: str, part: str) -> AnyAttrs:
    """The attributes with the dim called as it is within a chunk."""

    def changed(value: Any) -> Any:
        if isinstance(value, Dim):
            return Dim(part, value.axes) if value.name == dim else value
        if isinstance(value, tuple):
            return tuple(changed(each) for each in value)
        return part if value == dim else value

    if isinstance(attrs, Elementwise):
        return attrs
    fields = {f.name: getattr(attrs, f.name) for f in msgspec.structs.fields(attrs)}
    named = {key: value for key, value in fields.items() if key != "dtype"}
    return msgspec.structs.replace(attrs, **{key: changed(v) for key, v in named.items()})


def body_of(
    name: str,
    function: Function,
    region: set[int],
    through: Flows,
    chunks: Chunks,
    program: Program,
) -> Function:
    """(sums, dealt, shared) -> (sums, stacked), for one chunk."""
    b = Builder(name, program.sizes, program.signatures)
    mapping: dict[int, int] = {}
    types = function.types
    totals = [b.input(f"sum.{value}", sum_type(types[value], chunks)) for value in through.sums]
    for value in through.dealt:
        mapping[value] = b.input(f"chunk.{value}", part_type(types[value], chunks))
    for value in through.shared:
        role = function.inputs[value].role if value < len(function.inputs) else "value"
        mapping[value] = b.input(f"shared.{value}", types[value], role)
    for at in sorted(region):
        op = function.ops[at]
        b.path, b.span = op.path, op.span
        attrs = in_chunk(op.attrs, chunks.dim, chunks.part)
        results = b.emit(attrs, *(mapping[value] for value in op.operands))
        mapping.update(zip(op.results, results, strict=True))
    makers = {value: op for op in function.ops for value in op.results}
    given: list[int] = []
    for total, value in zip(totals, through.sums, strict=True):
        b.path, b.span = makers[value].path, makers[value].span
        given.append(b.add(total, b.cast(mapping[value], b.types[total].dtype)))
    given += [mapping[value] for value in through.stacked]
    outputs = [f"sum.{v}" for v in through.sums] + [f"out.{v}" for v in through.stacked]
    return b.finish(given, outputs, function.span)


def part_type(kind: Type, chunks: Chunks) -> Type:
    """The type of one chunk of a value."""
    return kind.placed(Dim(chunks.part) if d.name == chunks.dim else d for d in kind.dims)


def sum_type(kind: Type, chunks: Chunks) -> Type:
    """The type in which a sum over chunks is kept."""
    if kind.dtype in ("bf16", "f16"):
        return msgspec.structs.replace(kind, dtype=chunks.reduce)
    return kind


def chunked(
    function: Function, region: set[int], chunks: Chunks, program: Program
) -> tuple[Function, Function]:
    """The function with the region as a scan over chunks, and the scan's body."""
    through = flows(function, region, chunks.dim)
    name = unique(f"{function.name}.chunk", program.signatures)
    body = body_of(name, function, region, through, chunks, program)
    b = Builder(function.name, program.sizes, {**program.signatures, name: body.signature})
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    first, last = min(region), max(region)
    late = waiting(function, region)
    for at in (*range(first), *(at for at in range(first, last) if at not in region | late)):
        copied(b, function.ops[at], mapping)
    run_scan(b, function, region, through, chunks, body, mapping)
    for at in sorted(late | set(range(last + 1, len(function.ops)))):
        copied(b, function.ops[at], mapping)
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span), body


def waiting(function: Function, region: set[int]) -> set[int]:
    """Ops between those of the region that take what it gives, directly or not."""
    given = {v for at in region for v in function.ops[at].results}
    found: set[int] = set()
    for at in range(min(region), max(region)):
        op = function.ops[at]
        if at not in region and given.intersection(op.operands):
            found.add(at)
            given.update(op.results)
    return found


def copied(b: Builder, op: Op, mapping: dict[int, int]) -> None:
    """The op with its operands mapped."""
    b.path, b.span = op.path, op.span
    results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
    mapping.update(zip(op.results, results, strict=True))


def run_scan(
    b: Builder,
    function: Function,
    region: set[int],
    through: Flows,
    chunks: Chunks,
    body: Function,
    mapping: dict[int, int],
) -> None:
    """Emit the scan, with what it is dealt before and what is taken up behind it."""
    head = function.ops[min(region)]
    b.path, b.span = head.path, head.span
    carries = [zero(b, kind) for kind in body.types[: len(through.sums)]]
    deal = Chunk(chunks.dim, chunks.part, chunks.over)
    slices = [b.one(deal, mapping[value]) for value in through.dealt]
    shared = [mapping[value] for value in through.shared]
    scan = Scan(body.name, chunks.over, len(carries), len(slices))
    results = b.emit(scan, *carries, *slices, *shared)
    for value, total in zip(through.sums, results, strict=False):
        mapping[value] = b.cast(total, function.types[value].dtype)
    back = Unchunk(chunks.dim, chunks.part, chunks.over)
    for value, stacked in zip(through.stacked, results[len(carries) :], strict=True):
        mapping[value] = b.one(back, stacked)
