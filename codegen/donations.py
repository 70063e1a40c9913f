"""What may be written in place: over operands, over a scan's carries and slices, over inputs."""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.codegen.storage_classes import Classes
from fllmc.ir.ops import AddN, AllReduce, Coalesced, DotAdd, Elementwise, PutAdd, Scan
from fllmc.ir.plan import Frame
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Type


def layout(kind: Type) -> tuple[str, tuple[str, ...]]:
    """Dtype and placed dims in order: what two values must share to share storage."""
    return kind.dtype, tuple(str(dim) for dim in kind.dims)


def place_of(function: Function, frame: Frame, result: int) -> int | None:
    """The input in whose buffer a result is, if any."""
    place = frame.places[function.results[result]]
    return place.number if place.kind == "argument" else None


def updated_carry(function: Function, frame: Frame, carry: int) -> bool:
    """Whether a function that scans run makes a carry where it takes it."""
    return place_of(function, frame, carry) == carry


def updated_slice(
    function: Function, frame: Frame, slices: range, results: range, result: int
) -> int | None:
    """The input, of those that are slices, that a stacked result is written over, if any.

    `results` are all that are stacked.
    """
    given = place_of(function, frame, result)
    if given is None or given not in slices:
        return None
    same = [r for r in results if place_of(function, frame, r) == given]
    made = function.results[result] >= len(function.inputs)  # one handed through is copied
    return given if made and result == same[0] else None


def updated_input(function: Function, frame: Frame, attrs: Scan, result: int) -> int | None:
    """The input over which one of a scan's functions writes its result, if any.

    It is the carry of that place, or a slice where the result is stacked.
    """
    if function.name == attrs.ahead:
        return None
    if function.name == attrs.behind:
        slices, results = late_stretches(function, attrs)
    elif result < attrs.carries:
        return result if updated_carry(function, frame, result) else None
    elif function.name == attrs.final:
        slices = range(attrs.carries, attrs.carries + attrs.slices)
        results = range(attrs.carries, len(function.results))
    else:
        slices, results = body_stretches(function, attrs)
    return updated_slice(function, frame, slices, results, result) if result in results else None


def updated_operand(
    program: Program, frames: Mapping[str, Frame], attrs: Scan, result: int
) -> int | None:
    """The carry or slice operand of a scan that this result is written over, if any."""
    body = program.function(attrs.function)
    name, own = attrs.giver(result, len(body.results))
    function = program.function(name)
    given = updated_input(function, frames[name], attrs, own)
    if given is None or result < attrs.carries:
        return given
    if name == attrs.behind:
        return given + attrs.carries + attrs.slices - len(function.inputs)
    return given + attrs.early


def body_stretches(body: Function, attrs: Scan) -> tuple[range, range]:
    """The inputs of the function of the middle that are slices, and its results to be stacked."""
    stop = attrs.carries + attrs.slices - attrs.early - attrs.late
    return range(attrs.carries, stop), range(attrs.carries, len(body.results) - attrs.handed)


def late_stretches(function: Function, attrs: Scan) -> tuple[range, range]:
    """The inputs of `behind` that are slices, and its results: all are stacked."""
    return range(attrs.handed, len(function.inputs)), range(len(function.results))


def staged(attrs: Scan) -> bool:
    """Whether a scan copies its slices to a fixed place instead of being bound for each position.

    Micro-batches do: their slices are small (token numbers), their number is not.
    """
    return attrs.over == "microbatches"


def overwritable(op: Op) -> list[int]:
    """Operands that a single op's code reads before it writes a result of their layout."""
    match op.attrs:
        case AddN() | DotAdd() | PutAdd() | AllReduce():
            return [op.operands[0]]
        case Elementwise() | Coalesced():
            return list(op.operands)
        case _:
            return []


def overwrites(body: Function, classes: Classes, at: int, value: int) -> bool:
    """Whether the op at that position may write its result over the value's storage."""
    if at >= len(body.ops):
        return False
    op = body.ops[at]
    root = classes.find(value)
    same = [operand for operand in op.operands if classes.find(operand) == root]
    return set(same) <= set(overwritable(op)) and (not isinstance(op.attrs, AddN) or len(same) == 1)


def entry_donations(function: Function) -> dict[int, tuple[int, ...]]:
    """Results of an entry that replace the input of the same name."""
    names = {given.name: number for number, given in enumerate(function.inputs)}
    return {r: (names[name],) for r, name in enumerate(function.outputs) if name in names}


def scan_donations(body: Function, attrs: Scan) -> dict[int, tuple[int, ...]]:
    """Carries, and for stacked results the slices of the same layout, which they may update."""
    found: dict[int, tuple[int, ...]] = {carry: (carry,) for carry in range(attrs.carries)}
    slices, results = body_stretches(body, attrs)
    return found | alike(body, slices, results)


def alike(function: Function, slices: range, results: range) -> dict[int, tuple[int, ...]]:
    """For each of these results the inputs, of those that are slices, of the same layout."""
    return {
        result: tuple(k for k in slices if layout(function.types[k]) == layout(kind))
        for result, kind in ((r, function.types[function.results[r]]) for r in results)
    }


def behind_donations(function: Function, attrs: Scan) -> dict[int, tuple[int, ...]]:
    """The late slices that the stacked results of `behind` may update."""
    return alike(function, *late_stretches(function, attrs))


def same_donations(
    program: Program, frames: Mapping[str, Frame], op: Op
) -> dict[int, tuple[int, ...]]:
    """What the other turns update, which the function of the last turn has to update too."""
    assert isinstance(op.attrs, Scan)
    attrs = op.attrs
    given = {r: updated_operand(program, frames, attrs, r) for r in range(len(op.results))}
    return {result: (number,) for result, number in given.items() if number is not None}


def copied_input(function: Function, frame: Frame, result: int) -> int | None:
    """The input that an entry's result replaces by a copy at the end, not in place; if any."""
    (given,) = entry_donations(function).get(result, (None,))
    place = frame.places[function.results[result]]
    in_place = place.kind == "argument" and place.number == given
    return None if in_place else given
