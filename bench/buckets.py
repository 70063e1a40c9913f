"""A training step with updates by bucket beside one with an update for each parameter.

    python bench/buckets.py [--rounds 15]

Read off plans: kernels that step parameters, calls of collectives and the bytes that these copy.
Run on this processor, on one sample of two tokens, so that updating is most of a step: the time of
steps by turns, and the median of the rounds' ratios. It all goes to `bench/results/buckets.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from fllmc.codegen.figures import updates
from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.frontend.targets import load_target
from fllmc.ir.ops import Bucketed, Elementwise, Fused
from fllmc.ir.plan import Plan
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.join_updates import JoinUpdates
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import initialise
from fllmc.runtime.parts import lasting_parts

RESULTS = Path(__file__).resolve().parent / "results" / "buckets.json"
PLANNED = (("llama3_8b", "8x4"), ("llama3_8b", "data=2,fsdp=4,tensor=4"))
RUN = {
    "narrow": {"embed": "64", "ffn": "160", "layers": "2"},
    "wide": {"embed": "256", "ffn": "768", "layers": "4"},
}
SMALL = {"heads": "4", "kv_heads": "2", "vocab": "256"}


def planned(spec: str, mesh: str, joins: bool, dims: dict[str, str] | None = None) -> Plan:
    """The plan with updates joined, or each by itself."""
    sets = {f"dims.{name}": size for name, size in (dims or {}).items()}
    if dims:
        sets |= {"data.batch": "1", "data.seq": "2", "schedule.microbatches": "1"}
        sets |= {"data.source": "builtin:pydocs", "data.tokenizer": "bytes"}
    found, _ = load_spec(spec, sets)
    chosen = parse_mesh(mesh, found.mesh)[0] if mesh else Mesh()
    passes = [p for p in standard_pipeline(found) if joins or not isinstance(p, JoinUpdates)]
    cx = Context(chosen, lambda _: None)
    program, _ = run_pipeline(found.program, passes, cx, lambda: 0.0)
    return make_plan(program, found, load_target("cpu"))


def calls(plan: Plan) -> int:
    """Elementwise ops of a step's groups outside of stacks: on a CPU each is a call of torch."""
    program = plan.program
    groups = [op.attrs for op in program.function("train").ops]
    bodies = [program.function(g.function) for g in groups if isinstance(g, Bucketed | Fused)]
    return sum(isinstance(op.attrs, Elementwise) for body in bodies for op in body.ops)


def figures(plan: Plan) -> dict[str, Any]:
    """What the plan says of updates and of the collectives of a step."""
    step = [each for each in plan.collectives if each.entry == "train"]
    over = [each for each in step if "tensor" not in each.axes]
    found = updates(plan, "train")
    return {
        "tensors": found.parameters,
        "kernels": found.kernels,
        "elementwise calls": calls(plan),
        "collective calls": sum(each.calls for each in over),
        "moved bytes": sum(each.calls * each.bytes for each in over),
        "copied bytes": sum(each.calls * each.copied for each in over),
    }


def executor(plan: Plan) -> Executor:
    """One that has begun."""
    made = Executor(plan, schedule_text(plan))
    initialise(plan, made, lasting_parts(plan, 0))
    made.tensor("weights").fill_(1.0)
    return made


def seconds(made: Executor, steps: int) -> float:
    """Of one step."""
    begin = time.perf_counter()
    for _ in range(steps):
        made.run("train", step=1)
    return (time.perf_counter() - begin) / steps


def timed(dims: dict[str, str], rounds: int) -> dict[str, Any]:
    """Medians of a step's time, joined and apart by turns, and of their ratio."""
    plans = {joins: planned("llama3_8b", "", joins, {**SMALL, **dims}) for joins in (True, False)}
    made = {joins: executor(plan) for joins, plan in plans.items()}
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds + 1):
        for joins in (True, False) if turn % 2 else (False, True):
            took[joins].append(seconds(made[joins], 10))
    ratios = [a / b for a, b in zip(took[True][1:], took[False][1:], strict=True)]
    return {
        "dims": dims,
        "elementwise calls": {"joined": calls(plans[True]), "apart": calls(plans[False])},
        "joined seconds": statistics.median(took[True][1:]),
        "apart seconds": statistics.median(took[False][1:]),
        "ratio": statistics.median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }


def main() -> None:
    """Plan, run and write."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=15)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    told: dict[str, Any] = {
        "machine": {"processor": platform.processor(), "torch": torch.__version__},
        "load_before": list(os.getloadavg()),
        "plans": {
            f"{spec} on {mesh}": {
                "joined": figures(planned(spec, mesh, True)),
                "apart": figures(planned(spec, mesh, False)),
            }
            for spec, mesh in PLANNED
        },
        "steps": {name: timed(dims, rounds) for name, dims in RUN.items()},
    }
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
