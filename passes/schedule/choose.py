"""The timetable that a spec asks for by name, with the simulation that prices it."""

from __future__ import annotations

from msgspec import structs

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.settings import Pipeline
from fllmc.ir.timetable import Action, Timetable
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.schedule.errors import (
    KeepsMore,
    NoSolver,
    NoSuchChunks,
    NoSuchSchedule,
    NothingToSearch,
    NotInGroups,
    TooLittleMemory,
)
from fllmc.passes.schedule.exact import exact, installed
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
    if pipeline.exact and kind != AUTO:
        raise DiagnosticError(NothingToSearch(pipeline.span, kind))
    if pipeline.exact and not installed():
        raise DiagnosticError(NoSolver(pipeline.span))
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
        within(pipeline, found, ranks * unit(homes, costs))
    wrong = faults(found.timetable)
    if wrong:
        raise InternalError(f"{pipeline.kind}: {wrong[0].text}")
    return found


def unit(homes: tuple[int, ...], costs: Costs) -> float:
    """What the rank that keeps most keeps of one micro-batch."""
    kept = [0.0] * (max(homes) + 1)
    for stage, home in enumerate(homes):
        kept[home] += costs.kept[stage]
    return max(kept)


def within(pipeline: Pipeline, found: Simulation, plain: float) -> None:
    """DiagnosticError where it keeps more than the schedule allows; `plain` is what 1F1B keeps."""
    most, memory = max(found.peaks), pipeline.memory
    if memory and most > memory * plain * (1 + 1e-9):
        share = most / plain
        raise DiagnosticError(
            KeepsMore(pipeline.span, pipeline.kind, share, share - memory, memory)
        )


def automatically(
    pipeline: Pipeline, homes: tuple[int, ...], ranks: int, micros: int, costs: Costs
) -> Simulation:
    """The best order within the memory. Where nothing is gained by splitting, 1F1B.

    A weight gradient that takes no time, as of frozen weights, fills no wait: then nothing is
    split, and another order than 1F1B is only looked for where that takes too much memory.
    """
    memory = pipeline.memory or 1.0
    limits = [memory * ranks * unit(homes, costs)] * ranks
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
    found = min(options, key=lambda each: round(each.bubble, 9))
    return exact(found, costs, limits) if pipeline.exact else found


def unsplit(timetable: Timetable) -> Timetable:
    """The same order with whole backwards, each where its part for the input stood."""
    rows = tuple(
        tuple(Action("B", a.stage, a.micro) if a.kind == "I" else a for a in row if a.kind != "W")
        for row in timetable.rows
    )
    return structs.replace(timetable, rows=rows)
