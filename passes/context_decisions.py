"""What was decided of attention along divided sequences, with what the other ways would move."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from fllmc.ir.ops import Attend, AttendGrad, RingAttend
from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.settings import Schedule
from fllmc.ir.types import Sizes, Type, bare_axes


class Way(Struct, frozen=True):
    """What a rank receives in one attention, and how many bytes of keys and values it then has."""

    name: str
    received: int
    held: int

    def __str__(self) -> str:
        moved, held = bytes_text(self.received), bytes_text(self.held)
        return f"`{self.name}`: a rank receives {moved} a call, and has {held} of keys and values"


def ways(kinds: Sequence[Type], ranks: int, sizes: Sizes) -> tuple[Way, ...]:
    """The three ways, from queries, keys, values and results of a rank's part of the sequence."""
    queries, keys, values, results = (sizes.local_bytes(kind) for kind in kinds)
    pair = keys + values
    return (
        Way("gather", (ranks - 1) * pair, ranks * pair),
        Way("ring", (ranks - 1) * pair, 2 * pair),
        Way("exchange", (queries + results + pair) * (ranks - 1) // ranks, pair),
    )


def attentions(program: Program, schedule: Schedule) -> Iterator[Decision]:
    """One decision for each attention along a divided sequence."""
    told: set[str] = set()
    for function in program.functions:
        for op in function.ops:
            attrs = op.attrs
            if not isinstance(attrs, Attend) or isinstance(attrs, AttendGrad) or op.path in told:
                continue
            kinds = [function.types[value] for value in op.operands[:3]]
            axes = sequence_axes(attrs, kinds[0], schedule, program)
            if axes and attrs.over == attrs.along:
                told.add(op.path)
                yield decision(op.path, attrs, kinds, axes, program, schedule)


def sequence_axes(attrs: Attend, q: Type, schedule: Schedule, program: Program) -> tuple[str, ...]:
    """The axes that divide the sequence outside of the attention."""
    if schedule.context != "exchange":
        return bare_axes(q.axes_of(attrs.along))
    return tuple(
        axis
        for shard in schedule.shards
        for axis in shard.axes
        if attrs.along in shard.dims
        and not (shard.selector or shard.elsewhere)
        and program.mesh.has(axis)
        and program.mesh.extent((axis,)) > 1
    )


def decision(
    path: str,
    attrs: Attend,
    kinds: Sequence[Type],
    axes: tuple[str, ...],
    program: Program,
    schedule: Schedule,
) -> Decision:
    """The way taken, and the others."""
    ranks, sizes = program.mesh.extent(axes), program.sizes
    q, *pair = kinds
    chosen = schedule.context
    if chosen == "gather" and not isinstance(attrs, RingAttend):
        mine = q.dim(attrs.along)
        pair = [k.placed(mine if dim.name == attrs.over else dim for dim in k.dims) for k in pair]
    found = ways((q, *pair, attrs.wide(q)), ranks, sizes)
    mine = next(way for way in found if way.name == chosen)
    others = "; ".join(str(way) for way in found if way is not mine)
    on = ", ".join(f"`{axis}`" for axis in axes)
    return Decision(
        f"{path} along {attrs.along}",
        str(mine),
        f"the schedule has `context: {chosen}`, and {on} divides `{attrs.along}`",
        others,
    )
