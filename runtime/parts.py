"""Which part of which tensor a rank holds, under the names that users and checkpoints know."""

from __future__ import annotations

from math import prod

import msgspec
from msgspec import structs

from fllmc.ir.coded import SCALES
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.plan import Plan, Stored
from fllmc.ir.program import Parameter
from fllmc.ir.types import Sizes, Type, deals_zigzag
from fllmc.runtime.checkpoint.names import STATE_MARK


class Part(msgspec.Struct, frozen=True):
    """One rank's part of one tensor; a stacked tensor has a part for each layer that is here.

    `layer` is its position in the stored tensor, or None where that is not stacked. The part
    begins at `offsets` of a tensor of `shape`. `owned` on one of the ranks that hold the same.
    """

    name: str
    stored: Stored
    layer: int | None
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    local: tuple[int, ...]
    owned: bool

    @property
    def dims(self) -> tuple[str, ...]:
        """The names of the tensor's dims."""
        names = self.stored.type.names
        return names if self.layer is None else names[1:]

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
        name = parameter.name + mark + state
        return [Part(name, stored, None, shape, offsets, local, owned)]
    return [
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
    """For everything that a checkpoint of this plan holds, by name, one rank's part of it."""
    found = {
        part.name: part
        for stage in plan.by_stage
        for rank in range(plan.program.mesh.size if _splits_stacks(stage) else 1)
        for stored in stage.stored
        if stored.role in ("param", "state")
        for part in _parts(stage, stored, rank)
    }
    return dict(sorted(found.items()))


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
