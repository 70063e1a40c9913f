"""Small training programs on meshes with a pipeline axis, and their stages."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from fllmc.frontend import load_spec
from fllmc.frontend.targets import load_target
from fllmc.ir.evaluate import evaluate
from fllmc.ir.evaluate_parts import Array
from fllmc.ir.evaluate_stages import evaluate_stages
from fllmc.ir.program import Program
from fllmc.ir.timetable import Action, Timetable
from fllmc.ir.types import Mesh
from fllmc.ir.verify import verify
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.passes.schedule.simulate import simulate
from fllmc.passes.stages.cut_stages import Plan, cut_stages


def sharded(text: str, mesh: Mesh) -> Program:
    """The program of a spec on a mesh, before the layout passes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "small.fllm"
        path.write_text(text)
        spec, _ = load_spec(str(path), {})
    passes = standard_pipeline(spec)
    stop = next(at for at, each in enumerate(passes) if each.name == "coalesce")
    cx = Context(mesh, lambda found: None)
    program, _ = run_pipeline(spec.program, passes[:stop], cx, lambda: 0.0)
    return program


CPU = load_target("cpu")


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


def table(
    ranks: int, micros: int, chunks: int = 1, vee: bool = False, split: bool = False
) -> Timetable:
    """All forward, then all backward work (GPipe), with several stages a rank.

    Stages go round the ranks, or back and forth in a `vee`; `split` does weights last of all.
    """
    count = ranks * chunks
    homes = tuple(
        ranks - 1 - s % ranks if vee and (s // ranks) % 2 else s % ranks for s in range(count)
    )
    rows: list[tuple[Action, ...]] = []
    for rank in range(ranks):
        own = [stage for stage in range(count) if homes[stage] == rank]
        back = "I" if split else "B"
        row = [Action("F", stage, micro) for stage in own for micro in range(micros)]
        row += [Action(back, stage, micro) for stage in own[::-1] for micro in range(micros)]
        if split:
            row += [Action("W", stage, micro) for micro in range(micros) for stage in own]
        rows.append(tuple(row))
    return Timetable("table", ranks, count, micros, homes, tuple(rows))


def plan_of(times: Timetable) -> Plan:
    """How to cut layers over `pipe` for a given timetable."""
    halves = any(action.kind == "W" for row in times.rows for action in row)
    return Plan("pipe", ("layers",), times.homes, lambda costs: simulate(times, costs), CPU, halves)


def errors(text: str, mesh: Mesh, times: Timetable) -> dict[str, float]:
    """How far the stages' results are from one device's, by entry and output name."""
    whole = sharded(text, Mesh())
    stages = cut_stages(sharded(text, mesh), plan_of(times)).programs
    for stage in stages:
        verify(stage)
    found: dict[str, float] = {}
    for entry in whole.entries:
        given = arguments(whole, entry)
        wanted = evaluate(whole, entry, given)
        got = evaluate_stages(stages, "pipe", entry, given)
        assert set(got) == set(wanted)
        for name, value in wanted.items():
            scale = max(float(np.abs(value).max()), 1e-9)
            found[f"{entry} {name}"] = float(np.abs(got[name] - value).max()) / scale
    return found
