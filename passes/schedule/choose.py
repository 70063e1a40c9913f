"""The timetable that a spec asks for by name, with the simulation that prices it."""

from __future__ import annotations

from msgspec import structs

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.settings import Pipeline
from fllmc.ir.timetable import Action, Timetable
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.schedule.errors import (
    NoSuchChunks,
    NoSuchSchedule,
    NotInGroups,
    TooLittleMemory,
)
from fllmc.passes.schedule.families import FAMILIES, folded, looped, one_f_one_b
from fllmc.passes.schedule.greedy import automatic
from fllmc.passes.schedule.simulate import Simulation, simulate
from fllmc.passes.schedule.verify import faults

AUTO = "auto"
SINGLE = ("1f1b", "zb_h1", AUTO)
"""Schedules with one stage a rank."""
CHUNKED = ("interleaved", "breadth_first", "zb_v")
"""Schedules that give each rank two stages unless told otherwise."""
KINDS = (*FAMILIES, AUTO)


def homes_of(pipeline: Pipeline, ranks: int) -> tuple[int, ...]:
    """The rank of each stage. DiagnosticError for a name or number of chunks that is none."""
    kind, chunks = pipeline.kind, pipeline.chunks
    if kind not in KINDS:
        known = ", ".join(f"`{name}`" for name in KINDS)
        raise DiagnosticError(NoSuchSchedule(pipeline.span, kind, known))
    if kind in SINGLE and chunks != 1:
        raise DiagnosticError(NoSuchChunks(pipeline.span, kind, "one stage", chunks))
    if kind == "zb_v" and chunks != 2:
        raise DiagnosticError(NoSuchChunks(pipeline.span, kind, "two stages", chunks))
    return folded(ranks) if kind == "zb_v" else looped(ranks, ranks * chunks)


def chosen(pipeline: Pipeline, ranks: int, micros: int, costs: Costs) -> Simulation:
    """The simulated timetable of a schedule; verified.

    DiagnosticError where the numbers do not suit the schedule, or `auto` has too little memory.
    """
    homes = homes_of(pipeline, ranks)
    if pipeline.kind == "interleaved" and micros % ranks:
        raise DiagnosticError(NotInGroups(pipeline.span, ranks, micros))
    if pipeline.kind == AUTO:
        found = automatically(pipeline, homes, ranks, micros, costs)
    else:
        found = simulate(FAMILIES[pipeline.kind](ranks, micros, pipeline.chunks), costs)
    wrong = faults(found.timetable)
    if wrong:
        raise InternalError(f"{pipeline.kind}: {wrong[0].text}")
    return found


def automatically(
    pipeline: Pipeline, homes: tuple[int, ...], ranks: int, micros: int, costs: Costs
) -> Simulation:
    """The best order within the memory. Where nothing is gained by splitting, 1F1B.

    A weight gradient that takes no time, as of frozen weights, fills no wait: then nothing is
    split, and another order than 1F1B is only looked for where that takes too much memory.
    """
    unit = max(costs.kept, default=0.0)
    memory = pipeline.memory or 1.0
    limits = [memory * ranks * unit] * ranks
    plain = simulate(one_f_one_b(ranks, micros), costs)
    fits = all(peak <= limit * (1 + 1e-9) for peak, limit in zip(plain.peaks, limits, strict=True))
    best = None
    if any(costs.weight):
        best = automatic(homes, micros, costs, limits)
    elif not fits:
        at_once = structs.replace(costs, late=(0.0,) * len(homes))
        found = automatic(homes, micros, at_once, limits)
        best = found and simulate(unsplit(found.timetable), costs)
    options = [each for each in (plain if fits else None, best) if each is not None]
    if not options:
        needed = 1.0 / ranks  # one micro-batch after the other
        raise DiagnosticError(TooLittleMemory(pipeline.span, memory, needed, needed - memory))
    return min(options, key=lambda each: round(each.bubble, 9))


def unsplit(timetable: Timetable) -> Timetable:
    """The same order with whole backwards, each where its part for the input stood."""
    rows = tuple(
        tuple(Action("B", a.stage, a.micro) if a.kind == "I" else a for a in row if a.kind != "W")
        for row in timetable.rows
    )
    return structs.replace(timetable, rows=rows)
