"""Compiled steps equal the evaluator: the shipped models, and whatever the language holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from fllmc.codegen.make_plan import follows
from fllmc.runtime.executor import Executor
from tests.codegen.overlaps import faults
from tests.codegen.running import Made, arguments, check, compiled, give, results
from tests.specs.random_specs import Drawn, specs

MODELS = Path(__file__).resolve().parents[2] / "specs" / "models"
EXAMPLES = max(1, min(150, settings().max_examples * 3 // 8))
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
SMALLER = {"embed = 32": "embed = 16", "ffn = 64": "ffn = 24", "seq: 32": "seq: 6"}
SCHEDULE = "\nschedule cut for smoke {\n  microbatches: 2\n}\n"

LORA = """
adapter tuned on tiny_llama {
  freeze *
  lora body.*.attn.{wq, wv} {
    rank: 2
    alpha: 4
    dropout: 0.25
  }
  tune body.*.attn_norm.scale
}
"""


def shipped(name: str, microbatches: bool = False) -> str:
    """A shipped model, smaller still."""
    text = (MODELS / f"{name}.fllm").read_text()
    for old, new in SMALLER.items():
        text = text.replace(old, new)
    text = text.replace("loss: cross_entropy", "precision: f64\n  loss: cross_entropy")
    return text + SCHEDULE * microbatches


def tuned() -> str:
    """Low-rank updates on the tiny Llama, all else frozen."""
    text = shipped("tiny_llama", microbatches=True)
    return text.replace("train smoke: tiny_llama", f"{LORA}\ntrain smoke: tuned")


def over_stacks() -> str:
    """A layer before the stack, so that rows of the embedding are looked up again behind it."""
    text = shipped("tiny_llama").replace(
        "body(embedding(tokens))", "body(first(embedding(tokens)))"
    )
    text = text.replace("  stack body", "  sub first: layer\n  stack body")
    mapped = '  body[i] <-> "model.layers.{i}" : llama\n'
    assert mapped in text
    text = text.replace(mapped, '  first <-> "first" : llama\n' + mapped)
    return text + "\nschedule again for smoke {\n  recompute *\n}\n"


CASES = {
    "llama": shipped("tiny_llama"),
    "llama in micro-batches": shipped("tiny_llama", microbatches=True),
    "gpt": shipped("tiny_gpt"),
    "gpt in micro-batches": shipped("tiny_gpt", microbatches=True),
    "lora": tuned(),
    "all computed again": over_stacks(),
}


@pytest.fixture(scope="module", params=sorted(CASES))
def made(request: pytest.FixtureRequest) -> Made:
    return compiled(CASES[request.param])


def poison(executor: Executor) -> None:
    """Fill with NaN whatever a step may not read before it has written it."""
    executor.arena[executor.plan.frame_base :].fill_(0xFF)
    for stored in executor.plan.stored:
        if stored.role == "output":
            executor.arena[stored.offset : stored.offset + stored.bytes].fill_(0xFF)


def test_equals_the_evaluator(made: Made) -> None:
    check(made)


def test_memory_holds_what_is_alive(made: Made) -> None:
    assert faults(made.plan) == []
    assert follows(made.plan)
    assert Executor(made.plan, made.source).arena.numel() == made.plan.arena_bytes


def test_nothing_is_read_before_it_is_written(made: Made) -> None:
    clean, dirty = (Executor(made.plan, made.source) for _ in range(2))
    for entry in made.plan.program.entries:
        values = arguments(made.plan.program, entry)
        poison(dirty)
        wanted, found = results(clean, entry, values), results(dirty, entry, values)
        assert [n for n in wanted if not np.array_equal(found[n], wanted[n])] == []


def test_a_second_step_is_as_the_first(made: Made) -> None:
    """Nothing is left over from a run: the same inputs give the same bits."""
    executor = Executor(made.plan, made.source)
    values = arguments(made.plan.program, "train")
    first = results(executor, "train", values)
    executor.run("train", **give(executor, values))
    again = {name: executor.tensor(name).numpy() for name in first}
    assert [name for name in first if not np.array_equal(first[name], again[name])] == []


def test_parameters_and_states_are_updated_in_place(made: Made) -> None:
    assert [s.name for s in made.plan.stored if s.name.endswith("'")] == []


@settings(max_examples=EXAMPLES, suppress_health_check=SLOW)
@given(drawn=specs(meshes=("",)))
def test_random_specs(drawn: Drawn) -> None:
    made = compiled(drawn.text)
    assert faults(made.plan) == []
    executor = Executor(made.plan, made.source)
    poison(executor)
    check(made, executor)
