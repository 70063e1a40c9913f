"""What is said about pipelines that can't be."""

from __future__ import annotations

import pytest

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Pipeline, Schedule, Shard
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import Asked, asked_pipeline, missing_axis
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


TWO = """fllm 1

import "library/transformer.fllm" (norm, layer)

dims { batch seq vocab = 256 embed = 16 heads = 4 kv_heads = 2 ffn = 12 layers = 3 tails = 3 }

model two(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab
  stack body: layer over layers
  stack tail: layer over DIM

  return head(tail(body(embedding(tokens))))
}

train run: two {
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  rate: constant(1e-3)
  steps: 5
  precision: policy(params: f64, compute: f64, reduce: f64)
}

data text {
  source: "builtin:pydocs"
  tokenizer: bytes
  batch: 8
  seq: 6
}

schedule placed for run {
  microbatches: 4
}
"""


def test_two_stacks_are_cut_if_each_has_a_dim_of_its_own() -> None:
    mesh = Mesh((Axis("pipe", 2),))
    asked = Asked("pipe", ("layers", "tails"), Pipeline(), shard("layers tails", "pipe", 4))
    program = sharded(TWO.replace("DIM", "tails"), mesh)
    assert len(stage_programs(program, asked, 4, CPU).programs) == 2
    with pytest.raises(DiagnosticError) as raised:
        stage_programs(sharded(TWO.replace("DIM", "layers"), mesh), asked, 4, CPU)
    (found,) = raised.value.diagnostics
    assert (found.code, found.span) == ("E0515", line(4))
    assert found.message().startswith("two stacks run over `layers`")


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
