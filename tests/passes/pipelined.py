"""Small training programs on meshes with a pipeline axis, and their stages."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate_parts import Array
from fllmc.ir.program import Program
from fllmc.ir.settings import Spec
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline


def sharded(text: str, mesh: Mesh) -> Program:
    """The program of a spec on a mesh, before the layout passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.fllm"
        path.write_text(text)
        spec, _ = load_spec(str(path), {})
    passes = standard_pipeline(spec)
    stop = next(at for at, each in enumerate(passes) if each.name == "layout")
    program, _ = run_pipeline(spec.program, passes[:stop], Context(mesh, lambda found: None), lambda: 0.0)
    return program


def arguments(program: Program, entry: str, seed: int = 0) -> dict[str, Array | float]:
    """Random values for the inputs of an entry."""
    random = np.random.default_rng(seed)
    found: dict[str, Array | float] = {}
    function = program.function(entry)
    for given, kind in zip(function.inputs, function.types, strict=False):
        shape = program.sizes.shape(kind)
        if given.role == "host":
            found[given.name] = 2.0
        elif kind.index:
            found[given.name] = random.integers(program.sizes.size(kind.index), size=shape)
        elif given.role == "state":
            found[given.name] = random.random(shape)
        else:
            found[given.name] = random.standard_normal(shape) * 0.3 + (given.role != "param")
    return found
