"""One training step of a spec, compiled for a mesh and run by the evaluator."""

from __future__ import annotations

import numpy as np

from fllmc.fitting import within_budget
from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.frontend.targets import load_target
from fllmc.ir.evaluate import evaluate
from fllmc.ir.evaluate_stages import evaluate_stages
from fllmc.ir.program import Input, Program
from fllmc.ir.render import render
from fllmc.ir.types import Mesh, Type
from fllmc.ir.verify import verify
from fllmc.passes.base import Context
from fllmc.passes.overlap import Overlap
from fllmc.passes.pipeline import cut_pipeline, standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import asked_pipeline
from fllmc.passes.stages.keep import Within

STEP = 3
"""The step that is run, in a run of a few."""


def evaluated_step(text: str, mesh: str) -> dict[str, np.ndarray]:
    """Everything that `train` gives, by name. The same names are given the same numbers.

    A pipeline's stages are evaluated as they are cut, others' programs at the end of all passes.
    """
    spec, found, sources = load("evaluated.fllm", text=text)
    assert spec is not None, render(found, sources)
    chosen = parse_mesh(mesh, Mesh())[0] if mesh != "1" else Mesh()
    cx = Context(chosen, lambda _: None)
    asked = asked_pipeline(spec.schedule, spec.program, chosen)
    within, _ = within_budget(spec, chosen, "")
    passes = standard_pipeline(spec, within, beside=Overlap(target=load_target("cpu")))
    first, then = cut_pipeline(passes)
    program, _ = run_pipeline(spec.program, first, cx, lambda: 0.0)
    if asked is None:
        program, _ = run_pipeline(program, then, cx, lambda: 0.0)
    given = arguments(program)
    if asked is None:
        results = evaluate(program, "train", given)
    else:
        micros, own = spec.schedule.microbatches, within if isinstance(within, Within) else None
        stages = stage_programs(program, asked, micros, load_target("cpu"), own).programs
        for stage in stages:
            verify(stage)
        results = evaluate_stages(stages, asked.axis, "train", given)
    return {name: np.asarray(value) for name, value in results.items()}


def arguments(program: Program) -> dict[str, float | np.ndarray]:
    """Random values of what `train` takes."""
    function = program.function("train")
    pairs = zip(function.inputs, function.types, strict=False)
    return {each.name: argument(each, kind, program) for each, kind in pairs}


def argument(given: Input, kind: Type, program: Program) -> float | np.ndarray:
    """A random value of an input; a batch is the same however it is cut into micro-batches."""
    if given.role == "host":
        return float(STEP if given.name == "step" else given.name == "training")
    shape = program.sizes.shape(kind)
    rng = np.random.default_rng([int(np.prod(shape)), *given.name.encode()])
    if kind.index:
        return rng.integers(0, program.sizes.size(kind.index), shape)
    if kind.dtype in ("i8", "u8"):
        return rng.integers(0, 128, shape)
    if not kind.is_float:
        return np.arange(int(np.prod(shape))).reshape(shape)
    if given.name.endswith("weights"):
        return rng.random(shape) * (rng.random(shape) < 0.8)
    drawn = rng.normal(0, 0.3, shape)
    return np.abs(drawn) if given.name.endswith("#v") else drawn
