"""What a plan comes to, in a few lines or as data: the same for `compile` and `inspect`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from fllmc.codegen import figures
from fllmc.ir.plan import Plan
from fllmc.ir.quantities import bytes_text, count_text, flops_text
from fllmc.ir.render import Paint


def fits(plan: Plan) -> bool:
    """Whether one rank's arena fits in the target's memory, in every part of the run."""
    return all(p.fullest.arena_bytes <= p.target.memory_bytes for p in plan.parts)


def summary_lines(name: str, plan: Plan, paint: Paint) -> Iterator[str]:
    """The figures of a plan; of a run in stages those of its first part, and what each part is."""
    parts = plan.parts if plan.later else ()
    stages, plan = plan.by_stage, plan.fullest
    program, memory = plan.program, figures.memory(plan)
    counted = figures.parameters(*(stage.program for stage in stages))
    trained = "all trained"
    if counted.trained != counted.total:
        trained = f"{count_text(counted.trained)} trained"
    ranks = f"{program.mesh.size:,} rank{'s' * (program.mesh.size > 1)} of {plan.target.name}"
    yield paint("1", f"{name}: {count_text(counted.total)} parameters, {trained}; {ranks}")
    yield "memory per rank" + (", of the fullest pipeline stage" if len(stages) > 1 else "")
    for words, size in memory_rows(plan):
        yield f"  {words:<28}{bytes_text(size):>10}"
    share = 100 * memory.arena / max(plan.target.memory_bytes, 1)
    room = f"{share:.1f} % of {bytes_text(plan.target.memory_bytes)}"
    yield f"  {'in all':<28}{bytes_text(memory.arena):>10}   {room}"
    if len(stages) > 1:
        yield f"  {'in all, by stage':<28}{by_stage([stage.arena_bytes for stage in stages])}"
    yield f"  {'alive at the peak':<28}{bytes_text(memory.least):>10}"
    if plan.fullest.host_bytes:
        yield f"  {'waiting in host memory':<28}{bytes_text(plan.fullest.host_bytes):>10}"
    yield "per rank and step"
    entry = program.entries[0]
    yield f"  {'matrix work':<28}{flops_text(figures.operations(plan, entry)):>10}"
    rows = figures.traffic(plan, entry)
    for row in rows:
        words = f"{row.kind} over {', '.join(row.axes)}"
        yield f"  {words:<28}{bytes_text(row.bytes):>10}   {row.calls:,} calls"
    if not rows:
        yield f"  {'collectives':<28}{'none':>10}"
    steps = figures.updates(plan, entry)
    if steps.parameters:
        yield f"  {'updates':<28}{steps.kernels:>10}   for {steps.parameters:,} tensors"
    yield from map(part_line, parts)


def part_line(part: Plan) -> str:
    """One part of a run in stages."""
    train, data, counted = part.train, part.data, figures.parameters(part.program)
    return (
        f"stage {train.stage}: steps {train.begin + 1:,} to {train.steps:,}, "
        f"{data.batch:,} samples of {data.seq:,} tokens of {data.name}, "
        f"{count_text(counted.trained)} parameters trained, "
        f"{bytes_text(part.fullest.arena_bytes)} per rank"
    )


def memory_rows(plan: Plan) -> list[tuple[str, int]]:
    """The arena's parts, which add up to it."""
    memory = figures.memory(plan)
    return [
        ("parameters", memory.parameters),
        ("optimizer state", memory.optimizer),
        ("data", memory.data),
        ("activations and gradients", memory.working),
    ]


def by_stage(sizes: Sequence[int]) -> str:
    """Bytes of stages in their order: `1.2 GiB, 3 x 1.1 GiB`."""
    runs = [(text, len(list(same))) for text, same in groupby(map(bytes_text, sizes))]
    return ", ".join(text if count == 1 else f"{count} x {text}" for text, count in runs)


def summary_data(name: str, plan: Plan) -> dict[str, Any]:
    """The same as data."""
    fitting, stages, plan = fits(plan), plan.by_stage, plan.fullest
    program, memory = plan.program, figures.memory(plan)
    counted = figures.parameters(*(stage.program for stage in stages))
    entry = program.entries[0]
    return {
        "name": name,
        "mesh": str(program.mesh),
        "mesh_read": plan.mesh_read,
        "ranks": program.mesh.size,
        "target": plan.target.name,
        "target_bytes": plan.target.memory_bytes,
        "fits": fitting,
        "parameters": counted.total,
        "trained": counted.trained,
        "memory": {
            "parameters": memory.parameters,
            "optimizer": memory.optimizer,
            "data": memory.data,
            "working": memory.working,
            "arena": memory.arena,
            "least": memory.least,
            "host": plan.fullest.host_bytes,
        },
        "stages": [stage.arena_bytes for stage in stages],
        "matrix_flops": figures.operations(plan, entry),
        "collectives": [
            {"kind": row.kind, "axes": row.axes, "calls": row.calls, "bytes": row.bytes}
            for row in figures.traffic(plan, entry)
        ],
        "updates": figures.updates(plan, entry),
    }
