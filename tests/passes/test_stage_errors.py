"""What is said about pipelines that can't be."""

from __future__ import annotations

import pytest

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Pipeline, Schedule, Shard
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import asked_pipeline, missing_axis
from tests.oracle.small_specs import small_spec
from tests.passes.pipelined import CPU, sharded


def line(number: int) -> Span:
    """A place in line `number` of a schedule."""
    return Span("s.fllm", 10 * number, 10 * number + 5, number, 3, number, 8)


def shard(dims: str, axes: str, at: int = 1) -> Shard:
    """A directive in line `at`."""
    return Shard(tuple(dims.split()), tuple(axes.split()), span=line(at))


LAYERS = shard("layers", "pipe")


def refused(*shards: Shard, pipe: int = 2, order: Pipeline | None = None) -> Diagnostic:
    """The one diagnostic that a schedule for the small Llama on a pipeline leads to."""
    mesh = Mesh((Axis("pipe", pipe), Axis("tensor", 2)))
    program = sharded(small_spec("llama", "f64", 4), mesh)
    schedule = Schedule(shards=shards, microbatches=4, pipeline=order)
    with pytest.raises(DiagnosticError) as raised:
        asked = asked_pipeline(schedule, program, mesh)
        assert asked is not None
        stage_programs(program, asked, schedule.microbatches, CPU)
    (found,) = raised.value.diagnostics
    return found


def test_a_stack_is_not_divided_together_with_other_dims() -> None:
    found = refused(shard("layers embed", "pipe"))
    assert (found.code, found.span) == ("E0510", line(1))
    assert "`embed`" in found.message() and "layers" in found.primary()


def test_a_pipeline_has_one_axis() -> None:
    assert refused(shard("layers", "pipe tensor")).code == "E0511"


def test_the_axis_of_a_pipeline_divides_nothing_else() -> None:
    found = refused(LAYERS, shard("ffn", "pipe", 2))
    assert (found.code, found.span) == ("E0512", line(2))
    assert [label.span for label in found.secondary()] == [line(1)]


def test_more_stages_than_layers_and_ends() -> None:
    found = refused(LAYERS, pipe=8)
    assert found.code == "E0513"
    assert "8 stages" in found.message() and "5 layers" in found.message()
    assert refused(LAYERS, pipe=4, order=Pipeline("zb_v", 2)).code == "E0513"


def test_an_order_of_work_needs_stages() -> None:
    found = refused(order=Pipeline("zb_v", 2, span=line(3)))
    assert (found.code, found.span) == ("E0514", line(3))
    assert found.helps() == ("add `shard layers over AXIS`",)


def test_an_axis_that_the_mesh_lacks_is_told() -> None:
    program = sharded(small_spec("llama", "f64", 4), Mesh((Axis("data", 2),)))
    schedule = Schedule(shards=(LAYERS,))
    found = missing_axis(schedule, program, program.mesh)
    assert found is not None and (found.code, found.span) == ("W0315", line(1))
    assert missing_axis(schedule, program, Mesh()) is None


def test_interleaved_needs_a_multiple_of_the_ranks() -> None:
    found = refused(LAYERS, pipe=3, order=Pipeline("interleaved", 1, span=line(3)))
    assert (found.code, found.span) == ("E0521", line(3))


def test_without_the_axis_there_is_no_pipeline() -> None:
    program = sharded(small_spec("llama", "f64", 4), Mesh())
    schedule = Schedule(shards=(LAYERS,))
    assert asked_pipeline(schedule, program, Mesh((Axis("data", 2),))) is None
