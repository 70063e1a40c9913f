"""chunk-loss: the step is the same and full logits are in no memory."""

from __future__ import annotations

import pytest

from fllmc.codegen import figures
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Program
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place_errors import UnevenSequence
from fllmc.passes.runner import run_pipeline
from fllmc.passes.training_errors import UnevenChunks
from tests.passes.memory_specs import DEVICES, alike, compiled, evaluated, executed
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

POINTWISE = """fllm 1

dims {
  batch
  seq
  vocab = 10
  embed = 4
}

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab

  return head(silu(embedding(tokens)))
}

data text {
  source: "text"
  tokenizer: "t.json"
  batch: 2
  seq: 12
}

train run: net {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 0.1)
  steps: 5
  precision: f64
}

schedule placed for run {
  shard seq over tensor
LINES
}
"""
MOVES = ("all_gather", "reduce_scatter")
MODELS = ("tiny_gpt", "tiny_llama")
ENTRIES = ("train", "evaluate", "predict")


def logits(program: Program) -> list[str]:
    """Types of values along both the vocabulary and the whole sequence."""
    return [
        str(kind)
        for function in program.functions
        for kind in function.types
        if {"vocab", "seq"} <= set(kind.names)
    ]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("mesh", DEVICES)
@pytest.mark.parametrize(
    "lines",
    [
        "  loss_chunks: 3",
        "  loss_chunks: 4\n  microbatches: 2",
        "  loss_chunks: 3\n  shard seq over tensor elsewhere",
    ],
)
def test_the_step_is_the_same(model: str, mesh: str, lines: str) -> None:
    if "elsewhere" in lines and "tensor" not in mesh:
        mesh = "tensor=2"
    whole, _ = compiled(model, "  microbatches: 2" if "microbatches" in lines else "")
    _, plan = compiled(model, lines, mesh)
    assert logits(whole) != []
    assert logits(plan.program) == []
    for entry in ENTRIES:
        alike(evaluated(plan.program, entry), evaluated(whole, entry))


@pytest.mark.parametrize("model", MODELS)
def test_generated_code_does_what_the_plan_says(model: str) -> None:
    whole, _ = compiled(model, "")
    _, plan = compiled(model, "  loss_chunks: 6")
    for entry in ENTRIES:
        executor, found = executed(plan, entry)
        alike(found, evaluated(whole, entry))
        assert executor.arena.numel() == plan.arena_bytes


def test_more_chunks_take_less_memory() -> None:
    plans = [compiled("tiny_llama", f"  loss_chunks: {n}", vocab=100)[1] for n in (1, 2, 4)]
    sizes = [figures.memory(plan).working for plan in plans]
    assert sizes[0] > sizes[1] > sizes[2]


def test_ranks_that_divide_the_sequence_deal_out_what_they_hold() -> None:
    def made(lines: str, mesh: str) -> Program:
        spec, devices = load_drawn(Drawn(POINTWISE.replace("LINES", lines), mesh))
        cx = Context(devices, lambda found: None)
        return run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)[0]

    whole, parts = made("", ""), made("  loss_chunks: 3", "tensor=2")
    assert logits(parts) == []
    kinds = [str(op.attrs) for f in parts.functions for op in f.ops if op.kind in MOVES]
    assert not any("seq" in kind for kind in kinds)
    assert any("seq.part@tensor" in str(kind) for f in parts.functions for kind in f.types)
    for entry in ("train", "evaluate"):
        alike(evaluated(parts, entry), evaluated(whole, entry))


@pytest.mark.parametrize("context", ["gather", "ring", "exchange"])
def test_a_sequence_dealt_in_zigzag_is_dealt_to_chunks(context: str) -> None:
    whole, _ = compiled("tiny_llama", "")
    lines = f"  loss_chunks: 3\n  shard seq over context\n  context: {context}"
    _, plan = compiled("tiny_llama", lines, "context=2")
    assert logits(plan.program) == []
    alike(evaluated(plan.program, "train"), evaluated(whole, "train"))


def test_chunks_without_two_stretches_for_each_rank() -> None:
    with pytest.raises(DiagnosticError) as caught:
        compiled("tiny_llama", "  loss_chunks: 2\n  shard seq over context", "context=2")
    assert [(type(d), d.message()) for d in caught.value.diagnostics] == [
        (
            UnevenSequence,
            "`seq.part` of size 6 does not make two stretches for each of 2 ranks on `context`",
        )
    ]


def test_what_is_wanted_at_one_position_is_computed_there_alone() -> None:
    program, _ = compiled("tiny_llama", "")
    function = program.function("predict")
    (pick,) = [op for op in function.ops if op.kind == "pick"]
    stack = max(at for at, op in enumerate(function.ops) if op.kind == "scan")
    assert pick.operands[0] == function.ops[stack].results[0]


def test_chunks_that_do_not_divide_the_sequence() -> None:
    with pytest.raises(DiagnosticError) as caught:
        compiled("tiny_gpt", "  loss_chunks: 5")
    (found,) = caught.value.diagnostics
    assert isinstance(found, UnevenChunks)
    assert found.helps() == ("`loss_chunks` can be 2, 3, 4, 6",)
