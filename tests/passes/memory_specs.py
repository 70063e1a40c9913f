"""Small Llamas and GPTs under memory directives, in fp64, and what their steps compute."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.frontend.targets import load_target
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Plan
from fllmc.ir.program import Program
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.runtime.executor import Executor
from tests.specs.random_specs import Drawn
from tests.specs.stages import argument, load_drawn

TEXT = """fllm 1

import "models/MODEL.fllm" (MODEL)

dims {
  vocab = VOCAB
  embed = 8
  heads = 4
  ffn = 12
  layers = 3
MORE}

data text {
  source: "text"
  tokenizer: "t.json"
  batch: 4
  seq: 12
}

train run: MODEL {
  data: text
  loss: cross_entropy(z_loss: 1e-3)
  optimizer: sgd()
  rate: constant(peak: 0.1)
  clip: 1.0
  steps: 5
  precision: f64
}

schedule placed for run {
  shard batch over data
  shard (heads, kv_heads, ffn, vocab) over tensor
LINES
}
"""
DEVICES = ("", "data=2", "tensor=2", "data=2,tensor=2")


def text(model: str, lines: str, vocab: int = 20) -> str:
    """A spec with these lines in its schedule."""
    more = "" if "gpt" in model else "  kv_heads = 2\n"
    found = TEXT.replace("MODEL", model).replace("MORE", more).replace("LINES", lines)
    found = found.replace("VOCAB", str(vocab))
    return found.replace("heads, kv_heads", "heads") if "gpt" in model else found


def compiled(model: str, lines: str, mesh: str = "", vocab: int = 20) -> tuple[Program, Plan]:
    """The training program before anything is placed, and the plan."""
    spec, devices = load_drawn(Drawn(text(model, lines, vocab), mesh))
    levels: dict[str, Program] = {}

    def keep(number: int, name: str, program: Program) -> None:
        levels[program.level] = program

    cx = Context(devices, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0, keep)
    return levels["training"], make_plan(program, spec, load_target("cpu"))


def evaluated(program: Program, entry: str) -> Mapping[str, Any]:
    """What an entry gives for arguments that depend on their names alone."""
    function = program.function(entry)
    pairs = zip(function.inputs, function.types, strict=False)
    given = {g.name: argument(g.name, kind, program) for g, kind in pairs}
    return evaluate(program, entry, given)


def alike(found: Mapping[str, Any], wanted: Mapping[str, Any], tolerance: float = 1e-11) -> None:
    """Every result equals, relative to its norm."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        error = np.linalg.norm(found[name] - value)
        assert error <= tolerance * max(np.linalg.norm(value), 1e-3), name


def executed(plan: Plan, entry: str) -> tuple[Executor, Mapping[str, Any]]:
    """The same by the generated code, on one device."""
    executor = Executor(plan, schedule_text(plan))
    function = plan.program.function(entry)
    scalars: dict[str, float] = {}
    for given, kind in zip(function.inputs, function.types, strict=False):
        value = argument(given.name, kind, plan.program)
        if given.role == "host":
            scalars[given.name] = value
        else:
            executor.tensor(given.name).copy_(torch_of(value))
    executor.run(entry, **scalars)
    return executor, {name: executor.tensor(name).numpy().copy() for name in function.outputs}


def torch_of(value: Any) -> Any:
    """A numpy array for torch."""
    import torch

    return torch.from_numpy(np.asarray(value))
