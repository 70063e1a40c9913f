"""Which part of which tensor a rank holds, under the names that users and checkpoints know."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod

import msgspec
from msgspec import structs

from fllmc.ir.coded import SCALES
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.plan import Plan, Stored
from fllmc.ir.program import Parameter, Program
from fllmc.ir.types import Sizes, Type, deals_zigzag
from fllmc.runtime.checkpoint.changes import RowRange
from fllmc.runtime.checkpoint.names import STATE_MARK


class Part(msgspec.Struct, frozen=True):
    """One rank's part of one tensor; a stacked tensor has a part for each layer that is here.

    `layer` is its position in the stored tensor, or None where that is not stacked, and `row` the
    first row of the stored tensor that it has, where rows are those of dim `rows`. The part begins
    at `offsets` of a tensor of `shape`. `owned` on one of the ranks that hold the same.
    """

    name: str
    stored: Stored
    layer: int | None
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    local: tuple[int, ...]
    owned: bool
    row: int = 0
    rows: str = ""

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the tensor's dims."""
        names = self.stored.type.names[self.layer is not None :]
        return (self.rows, *names[1:]) if self.rows else names

    @property
    def slices(self) -> tuple[slice, ...]:
        """Where the part lies in the whole tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.local, strict=True))


def offsets_of(kind: Type, sizes: Sizes, rank: int) -> tuple[int, ...]:
    """Where a rank's part of a stored value begins, in elements of each dim.

    What is stored lies in one stretch along every dim.
    """
    if any(deals_zigzag(dim.axes) for dim in kind.dims):
        raise InternalError(f"a stored value is dealt in zig-zag: {kind}")
    place = sizes.mesh.coordinates(rank)
    extents = zip(kind.dims, sizes.local_shape(kind), strict=True)
    return tuple(sizes.mesh.position(place, dim.axes) * extent for dim, extent in extents)


def lasting_parts(plan: Plan, rank: int) -> tuple[Part, ...]:
    """The parts of all parameters and states that a rank holds, in the plan's order."""
    own, earlier = plan.of_rank(rank), _earlier_names(plan, rank)
    lasting = [stored for stored in own.stored if stored.role in ("param", "state")]
    return tuple(
        structs.replace(part, owned=False) if part.name in earlier else part
        for stored in lasting
        for part in _parts(own, stored, rank)
    )


def _earlier_names(plan: Plan, rank: int) -> set[str]:
    """What the pipeline stages before this rank's hold too."""
    if not plan.stages:
        return set()
    stages = plan.by_stage[: plan.program.mesh.coordinates(rank)[plan.pipe]]
    return {
        part.name
        for stage in stages
        for stored in stage.stored
        if stored.role in ("param", "state")
        for part in _parts(stage, stored, 0)
    }


def _parts(plan: Plan, stored: Stored, rank: int) -> list[Part]:
    sizes, kind = plan.program.sizes, stored.type
    if kind.partial:
        raise InternalError(f"`{stored.name}` is stored as a partial sum: {kind}")
    path, mark, state = stored.name.partition(STATE_MARK)
    parameter = plan.program.parameter(path)
    shape, local = sizes.shape(kind), sizes.local_shape(kind)
    offsets = offsets_of(kind, sizes, rank)
    owned = _is_owner(kind, sizes, rank, plan.pipe)
    if not _is_stacked(parameter, kind):
        name = (parameter.part_of or parameter.name) + mark + state
        parts = [Part(name, stored, None, shape, offsets, local, owned)]
    else:
        parts = [
            Part(
                parameter.layer_name(offsets[0] + layer) + mark + state,
                stored,
                layer,
                shape[1:],
                offsets[1:],
                local[1:],
                owned,
            )
            for layer in range(local[0])
        ]
    return [each for part in parts for each in _by_rows(plan.program, parameter, part)]


def _by_rows(program: Program, parameter: Parameter, part: Part) -> Iterator[Part]:
    """The part as it lies in the whole of which the parameter has some rows; itself otherwise."""
    if not parameter.rows:
        yield part
        return
    whole = program.parameter(parameter.part_of or parameter.name)
    shape = (program.sizes.size(whole.row_dim), *part.shape[1:])
    shift = parameter.rows[0] if parameter.part_of else 0
    begin = part.offsets[0] + shift
    for first, stop in parameter.stretches:
        low, high = max(first, begin), min(stop, begin + part.local[0])
        if low < high:
            yield structs.replace(
                part,
                shape=shape,
                offsets=(low, *part.offsets[1:]),
                local=(high - low, *part.local[1:]),
                row=low - begin,
                rows=whole.row_dim,
            )


def _is_stacked(parameter: Parameter, kind: Type) -> bool:
    return bool(parameter.stack) and kind.names[:1] == (parameter.stack,)


def _is_owner(kind: Type, sizes: Sizes, rank: int, pipe: str) -> bool:
    """Whether this rank is the first of those of its pipeline stage that hold the same part."""
    return all(
        position == 0
        for axis, position in sizes.mesh.coordinates(rank).items()
        if axis not in kind.axes and axis != pipe
    )


def expected(plan: Plan) -> dict[str, tuple[str, tuple[int, ...]]]:
    """The dtype and whole shape of everything that a checkpoint of this plan holds."""
    parts = whole_tensors(plan)
    return {name: (part.stored.type.dtype, part.shape) for name, part in parts.items()}


def whole_tensors(plan: Plan) -> dict[str, Part]:
    """For everything that a checkpoint of this plan holds, by name, one rank's part of it.

    Of a tensor whose rows train in part it is one of those that train: they have its dtype.
    """
    found: dict[str, Part] = {}
    for stage in plan.by_stage:
        for rank in range(plan.program.mesh.size if _splits_stacks(stage) else 1):
            for stored in stage.stored:
                if stored.role in ("param", "state"):
                    path, _, _ = stored.name.partition(STATE_MARK)
                    trained = bool(stage.program.parameter(path).part_of)
                    for part in _parts(stage, stored, rank):
                        if trained or part.name not in found:
                            found[part.name] = part
    return dict(sorted(found.items()))


def rows_held(plan: Plan) -> dict[str, tuple[RowRange, ...]]:
    """Of each tensor whose rows train in part: the stretches of rows that are held, in order.

    A frozen row has no state. Stretches of a tensor may differ in dtype.
    """
    found: dict[str, set[RowRange]] = {}
    for stage in plan.by_stage:
        for stored in stage.stored:
            if stored.role not in ("param", "state"):
                continue
            path, mark, state = stored.name.partition(STATE_MARK)
            parameter = stage.program.parameter(path)
            layers = stage.program.sizes.size(parameter.stack) if parameter.stack else 1
            for layer in range(layers if parameter.rows else 0):
                ranges = ((*ends, stored.type.dtype) for ends in parameter.stretches)
                name = parameter.layer_name(layer) + mark + state
                found.setdefault(name, set()).update(ranges)
    return {name: tuple(sorted(ranges)) for name, ranges in sorted(found.items())}


def absent(count: int, held: Sequence[RowRange]) -> tuple[tuple[int, int], ...]:
    """The stretches of `count` rows that are not held, in order."""
    ends = [0, *(end for first, stop, _ in held for end in (first, stop)), count]
    gaps = zip(ends[::2], ends[1::2], strict=True)
    return tuple((first, stop) for first, stop in gaps if first < stop)


def _splits_stacks(plan: Plan) -> bool:
    """Whether ranks hold different layers."""
    stacks = {parameter.stack for parameter in plan.program.parameters}
    dims = (dim for stored in plan.stored for dim in stored.type.dims[:1])
    return any(dim.axes and dim.name in stacks for dim in dims)


def parameter_count(plan: Plan) -> int:
    """The number of elements of all parameters."""
    parameters = {p.name: p for stage in plan.by_stage for p in stage.program.parameters}
    total = 0
    for part in whole_tensors(plan).values():
        parameter = parameters.get(part.stored.name)
        if parameter is not None and parameter.holds != SCALES:
            total += prod(part.shape) * (8 // parameter.bits if parameter.holds else 1)
    return total
