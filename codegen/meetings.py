"""Whether the stages of a pipeline make the same calls where they meet.

Each stage has a program of its own, so nothing else says that a sum over the pipeline's axis, of a
tied parameter or of the gradients' norm, is asked for by all that take part, in one order, as one
type. A call in which they differ would wait for ever, or add up what does not belong together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fllmc.ir.ops import COLLECTIVES, Pipeline
from fllmc.ir.program import Program
from fllmc.ir.walk import calls_of

Meeting = tuple[str, tuple[int, ...], str]
"""What is called, the positions on the axis that take part, and of what type."""


def meetings(program: Program, entry: str, pipe: str, extent: int) -> Iterator[Meeting]:
    """The calls along the axis `pipe` in the order in which a rank makes them.

    A pipeline's turns count as one call of all, for every stage takes them at the same point of its
    step. A call within a turn has no order among the stages: it shows as one of nobody.
    """
    function = program.function(entry)
    for op in function.ops:
        if isinstance(op.attrs, Pipeline) and op.attrs.axis == pipe:
            yield "turns", tuple(range(extent)), ""
            for name, _ in calls_of(op, program.sizes):
                for what, _, kind in meetings(program, name, pipe, extent):
                    yield what, (), kind
            continue
        if isinstance(op.attrs, COLLECTIVES) and pipe in op.attrs.axes:
            some = getattr(op.attrs, "among", ()) or tuple(range(extent))
            kinds = ", ".join(str(function.types[value]) for value in op.operands)
            yield op.attrs.kind, some, kinds
        for name, times in calls_of(op, program.sizes):
            yield from [*meetings(program, name, pipe, extent)] * times


def meeting_faults(programs: Sequence[Program], entry: str, pipe: str) -> list[str]:
    """Where the stages, by position on the axis, do not meet, in words; nothing if all do."""
    rows = [list(meetings(p, entry, pipe, len(programs))) for p in programs]
    done = [0] * len(rows)

    def next_of(rank: int) -> Meeting | None:
        return rows[rank][done[rank]] if done[rank] < len(rows[rank]) else None

    moved = True
    while moved:
        moved = False
        for rank in range(len(rows)):
            call = next_of(rank)
            if call and rank in call[1] and all(next_of(other) == call for other in call[1]):
                for other in call[1]:
                    done[other] += 1
                moved = True
    waiting = [(rank, call) for rank in range(len(rows)) if (call := next_of(rank))]
    return [f"stage {rank} waits for ever in {call}" for rank, call in waiting]
