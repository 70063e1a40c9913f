"""drop-unused: any level. Remove what nobody needs.

    %2 = exp(%0); %3, %4 = scan{function=body,over=layers,carries=1,slices=1}(%0, %1); return %3
    ->
    %2 = scan{function=body,over=layers,carries=1,slices=1}(%0, %1); return %2

Ops without a used result go (all ops are pure), with them results, inputs and carries of scan
bodies and other inner functions, functions that nothing runs, and inputs of entries; but an
entry's params and states stay, since they are what a run stores. A carry that only feeds itself is
not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import (
    AnyAttrs,
    Bucketed,
    Call,
    Coalesced,
    Fused,
    Pipeline,
    Scan,
    Signature,
    Wait,
)
from fllmc.ir.program import Function, Op, Program
from fllmc.passes.base import AnyLevelPass, Context
from fllmc.passes.inline import callees_first, equations, reachable


class Needed(msgspec.Struct):
    """What is needed of one function: positions among its inputs and results, and all values."""

    inputs: set[int]
    results: set[int]
    values: set[int]


def runs(attrs: AnyAttrs) -> str:
    """The function that the op runs, or nothing."""
    return attrs.function if isinstance(attrs, Call | Fused | Scan) else ""


def mark_op(op: Op, wanted: set[int], values: set[int], needed: Mapping[str, Needed]) -> bool:
    """Mark what an op with these wanted results needs; whether its callee now needs more."""
    name = runs(op.attrs)
    if not name:
        parts = wanted if isinstance(op.attrs, Coalesced | Wait) else range(len(op.operands))
        values.update(op.operands[i] for i in parts)
        return False
    inner = needed[name]
    if isinstance(op.attrs, Scan) and op.attrs.final:
        wanted = set(range(len(op.results)))  # both functions keep their signature
        for each in (inner, needed[op.attrs.final]):
            each.results |= wanted
            each.inputs.update(range(len(op.operands)))
    grows = not wanted <= inner.results
    inner.results |= wanted
    if isinstance(op.attrs, Scan):
        looped = {i for i in inner.inputs | inner.results if i < op.attrs.carries}
        grows = grows or not (looped <= inner.inputs and looped <= inner.results)
        inner.inputs |= looped
        inner.results |= looped
    values.update(op.operands[i] for i in inner.inputs)
    return grows


def mark(function: Function, needed: Mapping[str, Needed]) -> bool:
    """Mark what the function's needed results need; whether some callee needs more now."""
    own, grows = needed[function.name], False
    own.values.update(function.results[i] for i in own.results)
    for op in reversed(function.ops):
        inner = needed[runs(op.attrs)] if runs(op.attrs) else None
        wanted = {i for i, value in enumerate(op.results) if value in own.values}
        if wanted or isinstance(op.attrs, Pipeline):
            grows |= mark_op(op, wanted, own.values, needed)
            if inner is not None and isinstance(op.attrs, Scan):
                looped = {i for i in inner.results if i < op.attrs.carries}
                own.values.update(op.results[i] for i in looped)
    own.inputs |= {i for i in range(len(function.inputs)) if i in own.values}
    return grows


def kept_roots(program: Program) -> tuple[str, ...]:
    """Functions that are run from outside or looked up by later passes."""
    early = program.level in ("model", "training")
    turns = [
        name
        for function in program.functions
        for op in function.ops
        if isinstance(op.attrs, Pipeline)
        for _, name in op.attrs.functions
    ]
    attrs = [op.attrs for function in program.functions for op in function.ops]
    joined = [each.function for each in attrs if isinstance(each, Bucketed)]
    return (
        *program.entries,
        *turns,
        *joined,
        *(equations(program) if early else ("optimizer.states",)),
    )


def find_needed(program: Program) -> dict[str, Needed]:
    """What is needed of every function, from the entries inwards, until nothing is added."""
    roots = kept_roots(program)
    needed = {f.name: Needed(set(), set(), set()) for f in program.functions}
    for function in program.functions:
        if function.name in roots:
            needed[function.name].results.update(range(len(function.results)))
            needed[function.name].inputs.update(kept_inputs(function, program))
    settle(tuple(reversed(callees_first(program))), needed)
    return needed


def settle(order: Sequence[Function], needed: Mapping[str, Needed]) -> None:
    """Mark what is needed in all functions, callers first, until nothing is added."""
    changes = True
    while changes:
        changes = False
        for function in order:
            changes |= _changes(function, needed)


def kept_inputs(function: Function, program: Program) -> set[int]:
    """Inputs of a root that stay even if nothing uses them."""
    if function.name not in program.entries:
        return set(range(len(function.inputs)))
    return {i for i, given in enumerate(function.inputs) if given.role in ("param", "state")}


def _changes(function: Function, needed: Mapping[str, Needed]) -> bool:
    own = needed[function.name]
    before = len(own.inputs), len(own.values)
    grows = mark(function, needed)
    return grows or before != (len(own.inputs), len(own.values))


def trimmed_attrs(attrs: AnyAttrs, inner: Needed) -> AnyAttrs:
    """The attributes of an op whose callee keeps only what is needed."""
    if not isinstance(attrs, Scan):
        return attrs
    stop = attrs.carries + attrs.slices
    carries = sum(i < attrs.carries for i in inner.inputs)
    slices = sum(attrs.carries <= i < stop for i in inner.inputs)
    return msgspec.structs.replace(attrs, carries=carries, slices=slices)


def trimmed(
    function: Function,
    needed: Mapping[str, Needed],
    program: Program,
    signatures: Mapping[str, Signature],
) -> Function:
    """The function with only what is needed; `signatures` are those of its trimmed callees."""
    own = needed[function.name]
    b = Builder(function.name, program.sizes, signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
        if number in own.inputs
    }
    for op in function.ops:
        if not (own.values.intersection(op.results) or isinstance(op.attrs, Pipeline)):
            continue
        b.path, b.span = op.path, op.span
        attrs, operands, results = op.attrs, op.operands, op.results
        if runs(attrs):
            inner = needed[runs(attrs)]
            attrs = trimmed_attrs(attrs, inner)
            operands, results = _at(operands, inner.inputs), _at(results, inner.results)
        if isinstance(attrs, Coalesced | Wait):
            parts = {i for i, value in enumerate(results) if value in own.values}
            operands, results = _at(operands, parts), _at(results, parts)
        if isinstance(attrs, Coalesced):
            parts = {i for i, value in enumerate(op.results) if value in own.values}
            dims = tuple(dim for i, dim in enumerate(attrs.dims) if i in parts)
            attrs = msgspec.structs.replace(attrs, dims=dims)
        made = b.emit(attrs, *(mapping[value] for value in operands))
        mapping.update(zip(results, made, strict=True))
    positions = sorted(own.results)
    results = [mapping[function.results[i]] for i in positions]
    return b.finish(results, [function.outputs[i] for i in positions], function.span)


def _at(values: Sequence[int], positions: set[int]) -> tuple[int, ...]:
    return tuple(values[i] for i in sorted(positions))


class DropUnused(AnyLevelPass, frozen=True):
    """Remove ops, values, inputs and functions that nothing needs."""

    name: ClassVar[str] = "drop-unused"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """Find what is needed everywhere, then trim callees before their callers."""
        needed = find_needed(program)
        signatures: dict[str, Signature] = {}
        done: list[Function] = []
        for function in callees_first(program):
            if needed[function.name].results or function.name in program.entries:
                new = trimmed(function, needed, program, signatures)
                signatures[new.name] = new.signature
                done.append(new)
        whole = program.with_functions(*done)
        used = reachable(whole, kept_roots(whole)) & signatures.keys()
        drop = tuple(f.name for f in program.functions if f.name not in used)
        return whole.with_functions(drop=drop)
