"""One training step of a spec, compiled for a mesh and run by the evaluator."""

from __future__ import annotations

import numpy as np

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Input, Program
from fllmc.ir.render import render
from fllmc.ir.types import Mesh, Type
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline

STEP = 3
"""The step that is run, in a run of a few."""


def evaluated_step(text: str, mesh: str) -> dict[str, np.ndarray]:
    """Everything that `train` gives, by name. The same names are given the same numbers."""
    spec, found, sources = load("evaluated.fllm", text=text)
    assert spec is not None, render(found, sources)
    chosen = parse_mesh(mesh, Mesh())[0] if mesh != "1" else Mesh()
    cx = Context(chosen, lambda _: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    function = program.function("train")
    pairs = zip(function.inputs, function.types, strict=False)
    given = {each.name: argument(each, kind, program) for each, kind in pairs}
    return {name: np.asarray(value) for name, value in evaluate(program, "train", given).items()}


def argument(given: Input, kind: Type, program: Program) -> float | np.ndarray:
    """A random value of an input; a batch is the same however it is cut into micro-batches."""
    if given.role == "host":
        return float(STEP if given.name == "step" else given.name == "training")
    shape = program.sizes.shape(kind)
    rng = np.random.default_rng([int(np.prod(shape)), *given.name.encode()])
    if kind.index:
        return rng.integers(0, program.sizes.size(kind.index), shape)
    if not kind.is_float:
        return np.arange(int(np.prod(shape))).reshape(shape)
    if given.name.endswith("weights"):
        return rng.random(shape) * (rng.random(shape) < 0.8)
    drawn = rng.normal(0, 0.3, shape)
    return np.abs(drawn) if given.name.endswith("#v") else drawn
