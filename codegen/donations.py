"""What may be written in place: over operands, over a scan's carries and slices, over inputs."""

from __future__ import annotations

from fllmc.codegen.storage_classes import Classes
from fllmc.ir.ops import AddN, AllReduce, Coalesced, DotAdd, Elementwise, PutAdd, Scan
from fllmc.ir.plan import Frame
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Type


def layout(kind: Type) -> tuple[str, tuple[str, ...]]:
    """Dtype and placed dims in order: what two values must share to share storage."""
    return kind.dtype, tuple(str(dim) for dim in kind.dims)


def updated_input(body: Function, frame: Frame, attrs: Scan, result: int) -> int | None:
    """The carry or slice of a scan body that this result is written over, if any."""

    def place(number: int) -> int | None:
        value = body.results[number]
        return frame.places[value].number if frame.places[value].kind == "argument" else None

    given = place(result)
    if result < attrs.carries:
        return result if given == result else None
    if given is None or not attrs.carries <= given < attrs.carries + attrs.slices:
        return None
    same = [r for r in range(attrs.carries, len(body.results)) if place(r) == given]
    made = body.results[result] >= len(body.inputs)  # a slice handed through is copied
    return given if made and result == same[0] else None


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
    slices = range(attrs.carries, attrs.carries + attrs.slices)
    for result in range(attrs.carries, len(body.results)):
        wanted = layout(body.types[body.results[result]])
        found[result] = tuple(k for k in slices if layout(body.types[k]) == wanted)
    return found


def same_donations(body: Function, frame: Frame, attrs: Scan) -> dict[int, tuple[int, ...]]:
    """What the body updates, which the function of the last turn has to update too."""
    given = {r: updated_input(body, frame, attrs, r) for r in range(len(body.results))}
    return {result: (number,) for result, number in given.items() if number is not None}


def copied_input(function: Function, frame: Frame, result: int) -> int | None:
    """The input that an entry's result replaces by a copy at the end, not in place; if any."""
    (given,) = entry_donations(function).get(result, (None,))
    place = frame.places[function.results[result]]
    in_place = place.kind == "argument" and place.number == given
    return None if in_place else given
