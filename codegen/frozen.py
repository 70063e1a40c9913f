"""What frozen parameters cost, beside what the same spec costs when everything trains.

Every figure is read off the two plans: stored tensors by name, collectives by following parameters
through the ops that hand them on, products and kept bytes by walking what a step runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fllmc.codegen import figures
from fllmc.codegen.timeline import CATEGORIES, timeline
from fllmc.ir.codebooks import most_moved
from fllmc.ir.coded import SCALES, codes_of, owner_name, value_elements
from fllmc.ir.ops import (
    AllGather,
    Cast,
    Coalesced,
    Fused,
    LocalSlice,
    Rename,
    Scan,
    Stop,
    Transpose,
    Wait,
)
from fllmc.ir.plan import Collective, Frozen, FrozenGroup, Plan
from fllmc.ir.program import Function, Op, Parameter, Program
from fllmc.ir.quantities import bytes_text, flops_text
from fllmc.ir.types import DTYPE_BYTES, Type

TRAIN, EVALUATE = "train", "evaluate"
HANDS_ON = (AllGather, Cast, LocalSlice, Rename, Stop, Transpose)
"""Ops whose result, given a parameter, is that parameter in another form."""
KEPT = CATEGORIES.index("saved activations")


class Cost(NamedTuple):
    """What one parameter costs a rank; see FrozenGroup."""

    stored: int
    beside: int
    gradients: int
    moved: int
    calls: int

    def of(self, rows: int, count: int) -> Cost:
        """The share of some rows of so many; calls are made for all of them."""
        stored, beside, gradients, moved = (each * rows // count for each in self[:4])
        return Cost(stored, beside, gradients, moved, self.calls)


def frozen_figures(plan: Plan, full: Plan) -> Frozen:
    """The figures of a plan, and of that of the same spec without its adapter."""
    frozen = [p for p in plan.program.parameters if not p.trainable]
    beside = [p for p in plan.program.parameters if p.part_of]
    groups, trained = (tuple(figures_of(plan, full, chosen)) for chosen in (frozen, beside))
    return Frozen(groups, *whole_step(plan), *whole_step(full), trained)


def figures_of(plan: Plan, full: Plan, chosen: Sequence[Parameter]) -> Iterator[FrozenGroup]:
    """The figures of parameters, of one that is stored in parts those of each part's rows."""
    here = costs(plan, [owner_name(p) for p in chosen])
    there = costs(full, [p.part_of or owner_name(p) for p in chosen])
    for parameter in chosen:
        if parameter.holds == SCALES:
            continue  # counted with the codes
        name = owner_name(parameter)
        own, other = here[name], there[parameter.part_of or name]
        count = value_elements(parameter, plan.program.sizes)
        if parameter.rows:
            whole = plan.program.parameter(parameter.part_of or name)
            rows = plan.program.sizes.size(whole.row_dim)
            held = sum(stop - first for first, stop in parameter.stretches)
            shown = ", ".join(f"{first} to {stop}" for first, stop in parameter.stretches)
            name, other = f"{whole.name} rows {shown}", other.of(held, rows)
            if not parameter.part_of:  # the frozen part is zero in the other rows
                used = own.of(held, rows)
                own = used._replace(beside=used.beside + own.stored - used.stored)
                count = count * held // rows
        yield FrozenGroup(name, count, *own, *other)


def whole_step(plan: Plan) -> tuple[int, int, int, int]:
    """Work forward and backward, bytes kept between, and bytes moved."""
    moved = sum(each.bytes for each in figures.traffic(plan, TRAIN))
    return (*work(plan), kept(plan), moved)


def work(plan: Plan) -> tuple[int, int]:
    """Floating-point operations of a step: of the forward pass, and of all else.

    The entry `evaluate` is the forward pass of one micro-batch.
    """
    turns = plan.program.sizes.dims.get("microbatches", 1)
    forward = turns * figures.operations(plan, EVALUATE)
    return forward, figures.operations(plan, TRAIN) - forward


def kept(plan: Plan) -> int:
    """The most bytes that stacks keep for the backward pass at any moment of a step."""
    return max(moment.bytes[KEPT] for moment in timeline(plan, TRAIN).moments)


def costs(plan: Plan, names: Sequence[str]) -> dict[str, Cost]:
    """The cost of each named parameter, with that of its codes and scales if it is stored so."""
    parts: dict[str, list[str]] = {name: [] for name in names}
    for parameter in plan.program.parameters:
        parts.setdefault(owner_name(parameter), []).append(parameter.name)
    found = part_costs(plan, [part for name in names for part in parts[name]])
    sums = {name: zip(*(found[part] for part in parts[name]), strict=True) for name in names}
    return {name: Cost(*map(sum, columns)) for name, columns in sums.items()}


def part_costs(plan: Plan, names: Sequence[str]) -> dict[str, Cost]:
    """The cost of each named tensor."""
    moved = dict.fromkeys(names, 0)
    calls = dict.fromkeys(names, 0)
    for each, name, share in handed_on(plan):
        if name in moved:
            moved[name] += share * each.calls
            calls[name] += each.calls
    stored = {each.name: each for each in plan.stored if each.role in ("param", "state")}
    wide = DTYPE_BYTES[plan.train.precision.compute]
    found: dict[str, Cost] = {}
    for name in names:
        own = stored[name].bytes
        beside = sum(e.bytes for n, e in stored.items() if n.startswith(f"{name}#"))
        if not plan.program.parameter(name).holds and stored[name].type.dtype in ("f32", "f64"):
            narrow = own * wide // DTYPE_BYTES[stored[name].type.dtype]
            own, beside = narrow, beside + own - narrow
        gradients = gradient_bytes(plan, name)
        found[name] = Cost(own, beside, gradients, moved[name], calls[name])
    return found


def gradient_bytes(plan: Plan, name: str) -> int:
    """Bytes of the largest value that is a gradient of the parameter, or a sum of such.

    What is stepped has at least a gradient of its own size in the dtype of reduction.
    """
    program = plan.program
    parameter = program.parameter(name)
    wanted = {
        f"{mark}{n}"
        for n in (name, parameter.inner_name)
        for mark in ("grad.", "sum.", "sum.grad.")
    }
    own = [
        kind
        for function in program.functions
        for n, kind in named(program, function)
        if n in wanted
    ]
    least = 0
    if name in program.function(TRAIN).outputs:
        width = DTYPE_BYTES[plan.train.precision.reduce]
        least = program.sizes.local_elements(parameter.type) * width
    return max((program.sizes.local_bytes(kind) for kind in own), default=least)


def named(program: Program, function: Function) -> Iterator[tuple[str, Type]]:
    """A function's inputs and outputs, and what its scans make of their bodies' outputs."""
    for given, kind in zip(function.inputs, function.types, strict=False):
        yield given.name, kind
    yield from zip(function.outputs, function.signature.results, strict=True)
    for op in function.ops:
        if isinstance(op.attrs, Scan):
            body = program.function(op.attrs.function)
            for number, value in enumerate(op.results):
                name, own = op.attrs.giver(number, len(body.results))
                yield program.function(name).outputs[own], function.types[value]


def handed_on(plan: Plan) -> Iterator[tuple[Collective, str, int]]:
    """Each collective of a step with the parameters that it moves, and the bytes of each."""
    program = plan.program
    held = held_values(program, TRAIN)
    for each in plan.collectives:
        if each.entry != TRAIN:
            continue
        function = program.function(each.function)
        op = function.ops[each.op]
        inside = held.get(each.function, {})
        whole = sum(program.sizes.local_bytes(function.types[v]) for v in op.operands)
        for value in op.operands:
            if value in inside:
                share = program.sizes.local_bytes(function.types[value])
                yield each, inside[value], each.bytes * share // max(whole, 1)


def held_values(program: Program, entry: str) -> dict[str, dict[int, str]]:
    """By function: the values that are a parameter, or a layer of one, in whatever form."""
    found: dict[str, dict[int, str]] = {}
    names = {parameter.name for parameter in program.parameters}
    first = program.function(entry)
    own = {n: i.name for n, i in enumerate(first.inputs) if i.role == "param" and i.name in names}
    todo = [(first, own)]
    while todo:
        function, held = todo.pop()
        inside = found.setdefault(function.name, {})
        inside.update(held)
        todo += list(followed(program, function, inside))
    return found


def followed(
    program: Program, function: Function, inside: dict[int, str]
) -> Iterator[tuple[Function, dict[int, str]]]:
    """Follow parameters through a function's ops; gives what its scans are given."""
    for op in function.ops:
        if isinstance(op.attrs, HANDS_ON) and op.operands[0] in inside:
            inside[op.results[0]] = inside[op.operands[0]]
        if isinstance(op.attrs, Coalesced | Wait):
            pairs = zip(op.results, op.operands, strict=True)
            inside.update({result: inside[v] for result, v in pairs if v in inside})
        if isinstance(op.attrs, Fused):
            group = program.function(op.attrs.function)
            inner = {n: inside[v] for n, v in enumerate(op.operands) if v in inside}
            list(followed(program, group, inner))  # a group runs no scan
            for value, result in zip(group.results, op.results, strict=True):
                if value in inner:
                    inside[result] = inner[value]
        if isinstance(op.attrs, Scan):
            yield from followed_turns(program, op, inside)


def followed_turns(
    program: Program, op: Op, inside: Mapping[int, str]
) -> Iterator[tuple[Function, dict[int, str]]]:
    """The parameters that a scan gives its functions, the last turn's and those of all others."""
    assert isinstance(op.attrs, Scan)
    attrs, start = op.attrs, op.attrs.carries
    whole = {n: inside[v] for n, v in enumerate(op.operands) if v in inside and n >= start}
    if attrs.final:
        yield program.function(attrs.final), whole
    given: dict[str, dict[int, str]] = {name: {} for name in attrs.functions}
    for operand, name in whole.items():
        function, number = attrs.taker(operand)
        given[function][number] = name
    if attrs.ahead:
        ahead = program.function(attrs.ahead)
        made = dict(given[attrs.ahead])
        list(followed(program, ahead, made))  # it runs no scan
        body = program.function(attrs.function)
        first = len(body.inputs) - len(ahead.results)
        for number, value in enumerate(ahead.results):
            if value in made:
                given[attrs.function][first + number] = made[value]
    for name in filter(None, (attrs.function, attrs.ahead, attrs.behind)):
        yield program.function(name), given[name]


def frozen_lines(plan: Plan) -> Iterator[str]:
    """The figures as a table; the second number of a pair is that of all trained."""
    found = plan.frozen
    if found is None:
        yield "nothing is frozen, or the same spec can't be planned with everything trained"
        return
    titles = ("frozen", "elements", "stored", "states, copies", "gradients", "moved/step", "calls")
    rows = [titles, *(row(group.name, (group,)) for group in found.groups)]
    rows.append(row("in all", found.groups))
    rows += [row(f"{group.name} train", (group,)) for group in found.trained]
    widths = [max(len(cells[column]) for cells in rows) for column in range(len(titles))]
    for cells in rows:
        padded = [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
        yield "  ".join([cells[0].ljust(widths[0]), *padded])
    forward = flops_text(found.forward), flops_text(found.full_forward)
    backward = flops_text(found.backward), flops_text(found.full_backward)
    yield f"forward pass   {forward[0]} of {forward[1]} if all trained"
    yield f"backward pass  {backward[0]} of {backward[1]} if all trained"
    yield f"kept for it    {bytes_text(found.kept)} of {bytes_text(found.full_kept)} if all trained"
    moved = bytes_text(found.moved), bytes_text(found.full_moved)
    yield f"all that moves {moved[0]} of {moved[1]} if all trained"
    yield from quantized_lines(plan.program)


def quantized_lines(program: Program) -> Iterator[str]:
    """A line for each number of bits that is in use; none where all is stored in full."""
    coded = codes_of(program.parameters)
    for bits in sorted({codes.bits for codes in coded}):
        own = [codes for codes in coded if codes.bits == bits]
        blocks = " and ".join(map(str, sorted({codes.block for codes in own})))
        yield (
            f"in {bits} bits      {len(own)} of them, with a scale for each block of {blocks}: "
            f"this changes numbers, by up to {most_moved(bits):.1%} of the largest of a block"
        )


def row(name: str, groups: Sequence[FrozenGroup]) -> tuple[str, ...]:
    """One row of the table, of the groups together."""

    def pair(field: str) -> str:
        own = sum(getattr(group, field) for group in groups)
        full = sum(getattr(group, f"full_{field}") for group in groups)
        return f"{bytes_text(own)} of {bytes_text(full)}"

    calls = [sum(getattr(g, field) for g in groups) for field in ("calls", "full_calls")]
    pairs = [pair(field) for field in ("stored", "beside", "gradients", "moved")]
    counted = f"{sum(group.elements for group in groups):,}"
    return (name, counted, *pairs, f"{calls[0]:,} of {calls[1]:,}")
