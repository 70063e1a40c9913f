"""Programs made into plans and run, beside what the evaluator says of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.frontend import load
from fllmc.frontend.targets import load_target
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Plan
from fllmc.ir.program import DimSize, Program
from fllmc.ir.render import render
from fllmc.ir.settings import Data, Spec, Train
from fllmc.ir.types import Mesh, Type
from fllmc.ir.verify import verify
from fllmc.passes.base import Context, Pass
from fllmc.passes.fuse import Fuse
from fllmc.passes.layout import Layout
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.passes.sink_sums import SinkSums
from fllmc.runtime.executor import Executor

HOST = {"step": 3.0, "steps": 20.0, "seed": 7.0, "training": 1.0}
TOLERANCE = 1e-10
CX = Context(Mesh(), lambda found: None)


class Made(NamedTuple):
    """The program before placement, the plan that came of it, and the plan's code."""

    before: Program
    plan: Plan
    source: str


def compiled(text: str) -> Made:
    """A spec's text compiled for one device, all in f64."""
    text = re.sub(r"precision: .*", "precision: f64", text)
    spec, found, sources = load("small.fllm", text=text)
    assert spec is not None, render(found, sources)
    levels: dict[str, Program] = {}

    def keep(number: int, name: str, program: Program) -> None:
        levels[program.level] = program

    program, _ = run_pipeline(spec.program, standard_pipeline(spec), CX, lambda: 0.0, keep)
    plan = make_plan(program, spec, load_target("cpu"))
    return Made(levels["training"], plan, schedule_text(plan))


def planned(program: Program, *passes: Pass) -> Made:
    """A hand-made program's plan: after these passes, or all of the plan level."""
    verify(program)
    after = program
    for step in passes or (Layout(), SinkSums(), Fuse()):
        after = step.run(after, CX)
        verify(after)
    spec = Spec("hand", program, Data("none", "none", 1, 1), Train("hand", "hand", 1))
    plan = make_plan(after, spec, load_target("cpu"))
    return Made(program, plan, schedule_text(plan))


def hand_made(b: Builder, results: Sequence[int], outputs: Sequence[str] = ()) -> Program:
    """A sharded program with the builder's function as its entry `main`."""
    names = outputs or [f"y{number}" for number in range(len(results))]
    dims = tuple(DimSize(name, size) for name, size in b.sizes.dims.items())
    return Program("sharded", dims, (b.finish(results, names),), ("main",))


def arguments(program: Program, entry: str) -> dict[str, Any]:
    """Random arguments of an entry; the same name and shape is given the same numbers."""
    function = program.function(entry)
    pairs = zip(function.inputs, function.types, strict=False)
    return {
        g.name: HOST[g.name] if g.role == "host" else drawn(g.name, kind, program)
        for g, kind in pairs
    }


def drawn(name: str, kind: Type, program: Program) -> Any:
    """Random numbers; optimizer states and weights are positive."""
    shape = program.sizes.shape(kind)
    rng = np.random.default_rng([*shape, *name.encode()])
    if name.endswith("starts"):  # no later than the token itself
        return np.minimum(rng.integers(0, shape[-1], shape), np.arange(shape[-1]))
    if kind.index:
        return rng.integers(0, program.sizes.size(kind.index), shape)
    if kind.dtype == "i64":
        return rng.integers(0, 1000, shape)
    values = rng.normal(0, 0.5, shape)
    return np.abs(values) + 0.01 if "#" in name or "weights" in name else values


def give(executor: Executor, given: Mapping[str, Any]) -> dict[str, float]:
    """Write an entry's tensors; its host scalars are left over."""
    for name, value in given.items():
        if name not in HOST:
            executor.tensor(name).copy_(torch.as_tensor(value))
    return {name: value for name, value in given.items() if name in HOST}


def results(executor: Executor, entry: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry's run leaves in its outputs, as copies."""
    executor.run(entry, **give(executor, given))
    names = executor.plan.program.function(entry).outputs
    return {name: executor.tensor(name).numpy().copy() for name in names}


def check(made: Made, executor: Executor | None = None) -> None:
    """Every output of every entry is what the evaluator gives for the program before placement."""
    executor = executor or Executor(made.plan, made.source)
    for entry in made.plan.program.entries:
        given = arguments(made.plan.program, entry)
        wanted = evaluate(made.before, entry, given)
        found = results(executor, entry, given)
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            error = float(np.linalg.norm(np.ravel(found[name] - value)))
            # What rounding leaves of a sum that is zero has no relative error.
            scale = max(float(np.linalg.norm(np.ravel(value))), 1e-3)
            assert error <= TOLERANCE * scale, f"{entry}: {name}: {error} of {scale}"
