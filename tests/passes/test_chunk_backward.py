"""chunk-backward: the step is the same, and a layer's wide values are in no memory whole."""

from __future__ import annotations

import pytest

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Function, Program
from fllmc.passes.recompute_stacks import scan_of, stacks
from fllmc.passes.training_errors import UnevenChunks
from tests.passes.memory_specs import alike, compiled, evaluated, executed

FULL = "  recompute body.*\n"
ATTENTION = "  recompute body.* keep [attn.attend]\n"


def backward(program: Program) -> Function:
    """The body of the stack's backward scan."""
    (name,) = (
        scan_of(function.ops[stack.backward]).function
        for function in program.functions
        for stack in stacks(function)
    )
    return program.function(name)


def wide(program: Program) -> list[str]:
    """Types of values of the backward body along both the mlp's width and the whole sequence."""
    kinds = backward(program).types
    return [str(kind) for kind in kinds if {"ffn", "seq"} <= set(kind.names)]


@pytest.mark.parametrize("model", ["tiny_gpt", "tiny_llama"])
@pytest.mark.parametrize(
    ("lines", "mesh"),
    [
        (FULL, ""),
        (ATTENTION, ""),
        (FULL + "  microbatches: 2\n  loss_chunks: 4\n", "data=2"),
        (ATTENTION + "  shard seq over tensor elsewhere\n", "tensor=2"),
        (ATTENTION + "  zero 3 over data\n", "data=2,tensor=2"),
    ],
)
def test_the_step_is_the_same(model: str, lines: str, mesh: str) -> None:
    micro = "  microbatches: 2" if "microbatches" in lines else ""
    whole, _ = compiled(model, micro)
    _, before = compiled(model, FULL + micro)
    _, plan = compiled(model, lines + "  backward_chunks: 3", mesh)
    assert wide(before.program) != []
    assert wide(plan.program) == []
    alike(evaluated(plan.program, "train"), evaluated(whole, "train"))


def test_generated_code_does_what_the_plan_says() -> None:
    whole, _ = compiled("tiny_llama", "")
    _, plan = compiled("tiny_llama", FULL + "  backward_chunks: 4")
    executor, found = executed(plan, "train")
    alike(found, evaluated(whole, "train"))
    assert executor.arena.numel() == plan.arena_bytes


def test_parameters_are_gathered_once_for_all_chunks() -> None:
    def moved(lines: str) -> dict[str, int]:
        plan = compiled("tiny_llama", FULL + "  zero 3 over data\n" + lines, "data=2")[1]
        found: dict[str, int] = {}
        for each in plan.collectives:
            found[each.kind] = found.get(each.kind, 0) + each.bytes * each.calls
        return found

    chunks, whole = moved("  backward_chunks: 3\n  loss_chunks: 4"), moved("")
    for kind in ("all_gather", "reduce_scatter"):
        assert chunks[kind] == whole[kind]


def test_chunks_that_do_not_divide_the_sequence() -> None:
    with pytest.raises(DiagnosticError) as caught:
        compiled("tiny_gpt", "  backward_chunks: 5")
    (found,) = caught.value.diagnostics
    assert isinstance(found, UnevenChunks)
    assert found.helps() == ("`backward_chunks` can be 2, 3, 4, 6",)
