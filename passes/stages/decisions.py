"""What was decided of a pipeline, and why, in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text, seconds_text
from fllmc.ir.target import Target
from fllmc.passes.schedule.families import folded
from fllmc.passes.schedule.simulate import Simulation
from fllmc.passes.stages.casts import weight_casts
from fllmc.passes.stages.cut_stages import Cut
from fllmc.passes.stages.directives import Asked


def stage_decisions(cut: Cut, asked: Asked, target: Target) -> Iterator[Decision]:
    """The order of work, and what each rank of the pipeline axis has."""
    if cut.work is not None:
        table = cut.work.timetable
        choice = f"{table.name}, {table.micros} micro-batches"
        chunks = table.stages // table.ranks
        vee = ", there and back" if table.homes == folded(table.ranks) else ""
        choice += f", {chunks} stages a rank{vee}" if chunks > 1 else ""
        reason = f"the schedule asks for `{asked.order.kind}`; ranks wait "
        reason += f"{100 * cut.work.bubble:.1f} % of the time as reckoned for {target.name}"
        if asked.order.exact:
            reason += f"; no order that keeps no more makes that less than {percent(cut.work)}"
        yield Decision(f"pipeline over {asked.axis}", choice, reason)
        yield from cast_decisions(cut, cut.work, target)
    for rank, program in enumerate(cut.programs):
        yield Decision(
            f"{asked.axis} {rank}",
            ", ".join(held(program)),
            f"stages are cut such that the slowest is fastest, as reckoned for {target.name}",
        )


def cast_decisions(cut: Cut, work: Simulation, target: Target) -> Iterator[Decision]:
    """Why each turn casts the weights that it reads, where any are cast."""
    entry = cut.programs[0].entries[0]
    found = [weight_casts(program, entry, target) for program in cut.programs]
    most = max(found, key=lambda casts: casts.bytes)
    if most.bytes:
        seconds = max(casts.seconds for casts in found)
        yield Decision(
            "casts of weights",
            "in every turn",
            f"casting them again takes at least {seconds_text(seconds)} of a rank's step of "
            f"{seconds_text(work.makespan)} on {target.name}, and no memory between turns",
            f"one cast a step, as under `zero 1`: a rank's copies take {bytes_text(most.bytes)}",
        )


def percent(work: Simulation) -> str:
    """The proven bound of the share of time that ranks wait, rounded down."""
    return f"{int(1000 * work.bound) / 10:.1f} %"


def held(program: Program) -> Iterator[str]:
    """The layers of each stack that a stage has, then its other parameters."""
    layers = {p.stack: p.layers for p in program.parameters if p.layers}
    for stack, positions in layers.items():
        yield f"{stack} {stretches(positions)}"
    yield from (p.name for p in program.parameters if not p.layers)


def stretches(positions: Sequence[int]) -> str:
    """Numbers as stretches: `0-3, 8-11`."""
    found: list[list[int]] = []
    for position in positions:
        if found and found[-1][-1] == position - 1:
            found[-1].append(position)
        else:
            found.append([position])
    return ", ".join(f"{s[0]}-{s[-1]}" if len(s) > 1 else str(s[0]) for s in found)
