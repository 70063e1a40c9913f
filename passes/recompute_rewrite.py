"""Rewriting a pair of scans once it is decided what the forward one keeps for the backward one."""

from __future__ import annotations

from collections.abc import Container, Mapping

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Input, Op, Program, callees
from fllmc.ir.types import Type
from fllmc.passes.naming import unique
from fllmc.passes.recompute_stacks import Decision, Stack, scan_of


def emit_op(b: Builder, op: Op, mapping: dict[int, int]) -> None:
    """The op with its operands mapped; the mapping then has its results."""
    b.path, b.span = op.path, op.span
    results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
    mapping.update(zip(op.results, results, strict=True))


def run_again(b: Builder, source: Function, wanted: int, have: dict[int, int]) -> None:
    """Add the wanted value to those in `have`, with the ops of `source` that lead to it."""
    makers = {value: at for at, op in enumerate(source.ops) for value in op.results}
    todo, needed = [wanted], set[int]()
    while todo:
        value = todo.pop()
        if value not in have and makers[value] not in needed:
            needed.add(makers[value])
            todo.extend(source.ops[makers[value]].operands)
    for at in sorted(needed):
        known = dict(have)
        emit_op(b, source.ops[at], known)
        have.update({value: number for value, number in known.items() if value not in have})


class Inlet(msgspec.Struct, frozen=True):
    """One input of the new backward body, and what the scan is given for it.

    `old` is the position of the backward scan's operand that it was, or -1; `value` the value of
    the forward body that it holds, or -1; `operand` the value of the function around, or -1 where
    it is to be what the forward scan newly stacks.
    """

    old: int
    value: int
    operand: int


class Inlets(msgspec.Struct, frozen=True):
    """The inputs of the new backward body by kind, in order."""

    carries: tuple[Inlet, ...]
    slices: tuple[Inlet, ...]
    shared: tuple[Inlet, ...]


def new_inlets(function: Function, stack: Stack, body: Function, decision: Decision) -> Inlets:
    """What the backward body takes: what it took but for moved residuals, then what is kept."""
    first, second = function.ops[stack.forward], function.ops[stack.backward]
    back, there = scan_of(second), scan_of(first)
    stop = back.carries + back.slices
    old = [Inlet(at, -1, operand) for at, operand in enumerate(second.operands)]
    moved = set(stack.moved.values())
    fixed = {
        value: first.results[at]
        for at, value in enumerate(body.results)
        if at >= there.carries and at not in moved
    }
    saved = [Inlet(-1, value, fixed.get(value, -1)) for value in decision.saved]
    sliced = [Inlet(-1, value, first.operands[value]) for value in decision.slices]
    shared = [Inlet(-1, value, first.operands[value]) for value in decision.shared]
    left = [inlet for inlet in old[back.carries : stop] if inlet.old not in stack.moved]
    return Inlets(
        tuple(old[: back.carries]),
        joined_inlets([*left, *saved, *sliced]),
        joined_inlets([*old[stop:], *shared]),
    )


def joined_inlets(inlets: list[Inlet]) -> tuple[Inlet, ...]:
    """One inlet for a new one and an old one that are given the same value."""
    found: list[Inlet] = []
    for inlet in inlets:
        same = [at for at, known in enumerate(found) if known.operand == inlet.operand >= 0]
        if same and inlet.old < 0:
            found[same[0]] = msgspec.structs.replace(found[same[0]], value=inlet.value)
        else:
            found.append(inlet)
    return tuple(found)


def backward_body(
    body: Function, source: Function, program: Program, stack: Stack, inlets: Inlets, name: str
) -> Function:
    """The backward body, which runs ops of the forward body `source` again where it needs them."""
    b = Builder(name, program.sizes, program.signatures)
    have: dict[int, int] = {}
    mapping: dict[int, int] = {}
    moved = {old: source.results[at] for old, at in stack.moved.items()}
    names = {value: body.inputs[old].name for old, value in moved.items()}
    all_inlets = (*inlets.carries, *inlets.slices, *inlets.shared)
    taken = {body.inputs[inlet.old].name for inlet in all_inlets if inlet.old >= 0}
    for inlet in all_inlets:
        given, kind = inlet_form(inlet, body, source, names, taken)
        number = b.input(given.name, kind, given.role)
        taken.add(given.name)
        if inlet.old >= 0:
            mapping[inlet.old] = number
        if inlet.value >= 0:
            have[inlet.value] = number

    def reach(values: tuple[int, ...]) -> None:
        for value in values:
            if value in moved and value not in mapping:
                run_again(b, source, moved[value], have)
                mapping[value] = have[moved[value]]

    for op in body.ops:
        reach(op.operands)
        emit_op(b, op, mapping)
    reach(body.results)
    return b.finish([mapping[v] for v in body.results], body.outputs, body.span)


def inlet_form(
    inlet: Inlet,
    body: Function,
    source: Function,
    names: Mapping[int, str],
    taken: Container[str],
) -> tuple[Input, Type]:
    """The name, role and type of an input of the new backward body."""
    if inlet.old >= 0:
        return body.inputs[inlet.old], body.types[inlet.old]
    kind = source.types[inlet.value]
    if inlet.value in names:
        return Input(unique(names[inlet.value], taken)), kind
    if inlet.value < len(source.inputs):
        given = source.inputs[inlet.value]
        return Input(unique(given.name, taken), given.role), kind
    return Input(unique(f"kept{inlet.value}", taken)), kind


def forward_body(
    body: Function, stack: Stack, carries: int, new: tuple[int, ...], name: str
) -> Function:
    """The forward body with these new values stacked in place of the residuals that moved."""
    moved = set(stack.moved.values())
    still = [at for at in range(len(body.results)) if at < carries or at not in moved]
    names = {body.results[at]: body.outputs[at] for at in sorted(moved)}
    outputs = [body.outputs[at] for at in still]
    for value in new:
        outputs.append(unique(names.get(value, f"kept{value}"), outputs))
    results = (*(body.results[at] for at in still), *new)
    return msgspec.structs.replace(body, name=name, results=results, outputs=tuple(outputs))


def rewritten(function: Function, stack: Stack, decision: Decision, program: Program) -> Program:
    """The program with the two scans and their bodies as decided.

    Bodies that other scans run too are left alone: this pair gets bodies of its own.
    """
    first, second = function.ops[stack.forward], function.ops[stack.backward]
    there, back = scan_of(first), scan_of(second)
    body = program.function(there.function)
    inlets = new_inlets(function, stack, body, decision)
    new = tuple(inlet.value for inlet in inlets.slices if inlet.operand < 0)
    names = own_names(program, there.function, back.function)
    forward = forward_body(body, stack, there.carries, new, names[0])
    backward = backward_body(
        program.function(back.function), body, program, stack, inlets, names[1]
    )
    whole = program.with_functions(forward, backward)
    moved = set(stack.moved.values())
    still = tuple(first.results[at] for at in range(len(first.results)) if at not in moved)
    b = Builder(function.name, whole.sizes, whole.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    stacked: tuple[int, ...] = ()
    for at, op in enumerate(function.ops):
        b.path, b.span = op.path, op.span
        if at == stack.forward:
            attrs = msgspec.structs.replace(there, function=forward.name)
            made = b.emit(attrs, *(mapping[v] for v in op.operands))
            stacked = made[len(still) :]
            mapping.update(zip(still, made[: len(still)], strict=True))
        elif at == stack.backward:
            results = b.emit(
                backward_scan(back, backward.name, inlets), *operands(inlets, mapping, stacked)
            )
            mapping.update(zip(op.results, results, strict=True))
        else:
            emit_op(b, op, mapping)
    done = b.finish([mapping[v] for v in function.results], function.outputs, function.span)
    return whole.with_functions(done)


def own_names(program: Program, *names: str, mark: str = "recomputing") -> tuple[str, ...]:
    """Each name, or one derived from it where more than one op runs the function."""
    runs = [name for function in program.functions for name in callees(function)]
    taken = {function.name for function in program.functions}
    return tuple(
        unique(f"{name}.{mark}", taken) if runs.count(name) > 1 else name for name in names
    )


def backward_scan(scan: Scan, name: str, inlets: Inlets) -> Scan:
    """The backward scan with its new body and number of slices."""
    return msgspec.structs.replace(scan, function=name, slices=len(inlets.slices))


def operands(inlets: Inlets, mapping: Mapping[int, int], stacked: tuple[int, ...]) -> list[int]:
    """The backward scan's operands; `stacked` are the forward scan's new results, in order."""
    fresh = iter(stacked)
    return [
        mapping[inlet.operand] if inlet.operand >= 0 else next(fresh)
        for inlet in (*inlets.carries, *inlets.slices, *inlets.shared)
    ]
