"""`shard layers over pipe`: which directives ask for a pipeline, and which place values."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.settings import Pipeline, Schedule, Shard
from fllmc.ir.types import Mesh
from fllmc.passes.place_errors import NoSuchAxis
from fllmc.passes.stages.errors import NothingToCut, OneAxis, StacksAlone, TakenAxis


class Asked(msgspec.Struct, frozen=True):
    """A pipeline over a mesh axis: of the stacks over these dims, in this order of work."""

    axis: str
    dims: tuple[str, ...]
    order: Pipeline
    shard: Shard


def pipeline_shards(schedule: Schedule, program: Program) -> tuple[Shard, ...]:
    """The directives that divide stacks."""
    stacks = {parameter.stack for parameter in program.parameters if parameter.stack}
    found = (shard for shard in schedule.shards if not shard.selector)
    return tuple(shard for shard in found if stacks & set(shard.dims))


def placing_shards(schedule: Schedule, program: Program) -> tuple[Shard, ...]:
    """The directives that divide values."""
    pipelines = pipeline_shards(schedule, program)
    return tuple(shard for shard in schedule.shards if shard not in pipelines)


def asked_pipeline(schedule: Schedule, program: Program, mesh: Mesh) -> Asked | None:
    """The pipeline that a schedule asks for on a mesh; None where its axis is missing or of 1.

    DiagnosticError where directives contradict each other.
    """
    shards = pipeline_shards(schedule, program)
    if not shards:
        if schedule.pipeline is not None:
            stacks = sorted({p.stack for p in program.parameters if p.stack})
            order = schedule.pipeline
            raise DiagnosticError(NothingToCut(order.span, order.kind, tuple(stacks)))
        return None
    found = list(contradictions(shards, placing_shards(schedule, program), program))
    if found:
        raise DiagnosticError(*found)
    axis = shards[0].axes[0]
    if mesh.extent(each.name for each in mesh.axes if each.name == axis) == 1:
        return None
    dims = tuple(dict.fromkeys(dim for shard in shards for dim in shard.dims))
    return Asked(axis, dims, schedule.pipeline or Pipeline(), shards[0])


def missing_axis(schedule: Schedule, program: Program, mesh: Mesh) -> Diagnostic | None:
    """A warning for a pipeline whose axis the mesh lacks; none on one device."""
    for shard in pipeline_shards(schedule, program):
        for axis in shard.axes:
            if mesh.size > 1 and not mesh.has(axis):
                dims = ", ".join(f"`{dim}`" for dim in shard.dims)
                return NoSuchAxis(shard.span, axis, dims, str(mesh))
    return None


def contradictions(
    shards: Sequence[Shard], others: Sequence[Shard], program: Program
) -> Sequence[Diagnostic]:
    """What can't be meant: other dims with the stacks, several axes, an axis that is used twice."""
    stacks = {parameter.stack for parameter in program.parameters if parameter.stack}
    found: list[Diagnostic] = []
    for shard in shards:
        for dim in shard.dims:
            if dim not in stacks:
                found.append(StacksAlone(shard.span, dim, ", ".join(sorted(stacks))))
    axes = tuple(dict.fromkeys(axis for shard in shards for axis in shard.axes))
    if len(axes) > 1:
        found.append(OneAxis(shards[-1].span, ", ".join(axes)))
    for other in others:
        taken = [axis for axis in other.axes if axis in axes]
        if taken:
            found.append(TakenAxis(other.span, taken[0], ", ".join(other.dims), shards[0].span))
    return found
