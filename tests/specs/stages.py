"""A drawn spec on its way through the pipeline: the program after each pass, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.render import render
from fllmc.ir.settings import Spec
from fllmc.ir.types import Mesh, Type
from fllmc.passes.base import Context, Pass
from fllmc.passes.inline import reachable
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.specs.random_specs import Drawn

Values = Mapping[str, Any]
STEP, STEPS = 3, 5
"""The step that `train` is run for, and the number of all steps."""


class Stage:
    """A program on its way, and what its entries give for the arguments of their names."""

    def __init__(self, step: Pass | None, program: Program) -> None:
        self.step = step
        self.program = program
        self.found: dict[str, dict[str, Any]] = {}

    def arguments(self, entry: str) -> dict[str, Any]:
        """Random arguments; the same name and shape is given the same numbers."""
        function = self.program.function(entry)
        pairs = zip(function.inputs, function.types, strict=False)
        return {g.name: argument(g.name, kind, self.program) for g, kind in pairs}

    def same_functions(self, other: Stage, entry: str) -> bool:
        """Whether both run the same functions for the entry, which need not be run twice then."""
        ours, theirs = ({f.name: f for f in s.program.functions} for s in (self, other))
        used = reachable(self.program, (entry,))
        alike = (self.program.dims, self.program.mesh) == (other.program.dims, other.program.mesh)
        return alike and all(ours[name] == theirs.get(name) for name in used)

    def run(self, entry: str) -> dict[str, Any]:
        """The entry's results for these arguments."""
        if entry not in self.found:
            self.found[entry] = self.run_on(entry, self.arguments(entry))
        return self.found[entry]

    def run_on(self, entry: str, values: Values) -> dict[str, Any]:
        """The entry's results, all of which are finite."""
        found = evaluate(self.program, entry, values)
        for name, value in found.items():
            assert np.isfinite(value).all(), f"{entry}: {name}"
        return found

    @cached_property
    def trained(self) -> list[str]:
        """Names of the parameters that train."""
        return [p.name for p in self.program.parameters if p.trainable]


def argument(name: str, kind: Type, program: Program) -> Any:
    """A random value of an input, positive where it has to be."""
    shape = program.sizes.shape(kind)
    rng = np.random.default_rng([*shape, *name.removeprefix("micro.").encode()])
    if kind.index:
        return rng.integers(0, program.sizes.size(kind.index), shape)
    if not kind.is_float:
        return rng.integers(0, 1000, shape)
    if name in ("step", "steps"):
        return STEP if name == "step" else STEPS
    if name.endswith("weights"):
        return rng.random(shape) * (rng.random(shape) < 0.8) + 0.01
    drawn = rng.normal(0, 0.5, shape)
    return np.abs(drawn) if name.endswith("#v") or not shape else drawn


def load_drawn(drawn: Drawn) -> tuple[Spec, Mesh]:
    """The spec, which must be without mistakes, and its mesh."""
    spec, found, sources = load("random.fllm", text=drawn.text)
    assert spec is not None, render(found, sources)
    return spec, parse_mesh(drawn.mesh, Mesh())[0] if drawn.mesh else Mesh()


def stages(spec: Spec, mesh: Mesh) -> list[Stage]:
    """What the model is, and what it is after each pass; the runner verifies each."""
    passes = (None, *standard_pipeline(spec))
    found: list[Stage] = []

    def keep(number: int, name: str, program: Program) -> None:
        found.append(Stage(passes[number], program))

    run_pipeline(spec.program, passes[1:], Context(mesh, lambda _: None), lambda: 0.0, keep)
    return found
