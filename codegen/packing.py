"""What a coalesced collective copies to lay its values one behind another, and where.

A gather sends one stretch and a scatter receives one: a rank's parts. Where these adjoin they are
sent and received in place. What all ranks have lies rank by rank in the stretch on the other side,
each rank's parts together, so a value's parts lie apart there and are always copied. A reduction
works on one stretch, in place if its values adjoin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fllmc.ir.ops import AllGather, Coalesced, ReduceScatter
from fllmc.ir.plan import Frame
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes, Type, deals_zigzag

Adjoin = Callable[[Sequence[int], Sequence[int]], bool]
"""Whether values lie one behind another, and others in the same places."""


def packed_lists(op: Op) -> list[Sequence[int]]:
    """Values that a coalesced collective need not copy if they adjoin."""
    if not isinstance(op.attrs, Coalesced):
        return []
    return [op.results if op.attrs.collective == "reduce_scatter" else op.operands]


def packed_bytes(op: Op, function: Function, sizes: Sizes, adjoin: Adjoin) -> int:
    """Bytes of the buffer in which a coalesced collective lays out its values.

    A reduction has one copy of all values, or none. Gathers and scatters have a rank's parts, if
    they do not adjoin, then those of all ranks.
    """
    assert isinstance(op.attrs, Coalesced)

    def total(values: Sequence[int]) -> int:
        return sum(sizes.local_bytes(function.types[value]) for value in values)

    (parts,) = packed_lists(op)
    if op.attrs.collective == "all_reduce":
        return 0 if adjoin(op.operands, op.results) else total(op.operands)
    whole = op.operands if op.attrs.collective == "reduce_scatter" else op.results
    return total(whole) + (0 if adjoin(parts, parts) else total(parts))


def adjoin_in(frame: Frame, function: Function, sizes: Sizes) -> Adjoin:
    """Whether values adjoin as a frame places them."""

    def adjoin(values: Sequence[int], others: Sequence[int]) -> bool:
        at = frame.places[values[0]].number
        for value, other in zip(values, others, strict=True):
            place = frame.places[value]
            if place.kind != "frame" or place.number != at or frame.places[other] != place:
                return False
            at += sizes.local_bytes(function.types[value])
        return True

    return adjoin


def in_one_piece(op: Op, kind: Type) -> bool:
    """Whether each rank's part of what a gather or scatter moves lies in one piece, in order."""
    assert isinstance(op.attrs, AllGather | ReduceScatter)
    return kind.names[0] == op.attrs.dim and not deals_zigzag(op.attrs.axes)


def copied_bytes(at: int, function: Function, sizes: Sizes, frame: Frame) -> int:
    """Bytes that an op, a gather, a scatter or a coalesced collective, copies beside moving."""
    op, scratch = function.ops[at], frame.ops[at].scratch
    match op.attrs:
        case Coalesced(collective=collective):
            buffer = packed_bytes(op, function, sizes, adjoin_in(frame, function, sizes))
            return 2 * buffer if collective == "all_reduce" else buffer
        case AllGather() if scratch:
            return sizes.local_bytes(function.types[op.results[0]])
        case ReduceScatter() if scratch:
            return sizes.local_bytes(function.types[op.operands[0]])
        case _:
            return 0
