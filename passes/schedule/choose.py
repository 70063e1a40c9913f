"""The timetable that a spec asks for by name, with the simulation that prices it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

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
from fllmc.passes.schedule.families import (
    FAMILIES,
    breadth_first,
    folded,
    interleaved,
    looped,
    one_f_one_b,
    zb_v,
)
from fllmc.passes.schedule.greedy import automatic
from fllmc.passes.schedule.simulate import Simulation, simulate
from fllmc.passes.schedule.verify import faults

AUTO = "auto"
SINGLE = ("1f1b", "zb_h1")
"""Schedules with one stage a rank."""
CHUNKED = ("interleaved", "breadth_first", "zb_v")
"""Schedules that give each rank two stages unless told otherwise."""
KINDS = (*FAMILIES, AUTO)


def placements(pipeline: Pipeline, ranks: int) -> tuple[tuple[int, ...], ...]:
    """The rank of each stage: in one way, or in those among which `auto` may choose.

    With `chunks: n` it may give each rank 1 to n stages, round the ranks or, two, there and back.
    DiagnosticError for a name or number of chunks that is none.
    """
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
    if kind == AUTO:
        round_them = (looped(ranks, ranks * count) for count in range(1, chunks + 1))
        return (*round_them, folded(ranks)) if chunks > 1 < ranks else tuple(round_them)
    return (folded(ranks) if kind == "zb_v" else looped(ranks, ranks * chunks),)


Placed = TypeVar("Placed")


def quickest(
    options: Iterable[tuple[int, ...]],
    place: Callable[[tuple[int, ...]], Placed],
    time: Callable[[Placed], float],
) -> Placed:
    """The quickest step of those with stages placed so, and of equally quick ones the first.

    DiagnosticError where the first cannot be. What comes later may have more stages than there are
    layers, or find no order within the memory.
    """
    found: list[Placed] = []
    for homes in options:
        try:
            found.append(place(homes))
        except DiagnosticError:
            if not found:
                raise
    return min(found, key=lambda each: float(f"{time(each):.9g}"))


def chosen(
    pipeline: Pipeline,
    ranks: int,
    micros: int,
    costs: Costs,
    homes: tuple[int, ...] = (),
) -> Simulation:
    """The simulated timetable of a schedule for stages on these ranks; verified.

    Without `homes`, for the first of the placements. DiagnosticError where the numbers do not suit
    the schedule, or there is too little memory.
    """
    homes = homes or placements(pipeline, ranks)[0]
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


def published(homes: tuple[int, ...], ranks: int, micros: int) -> Iterator[Timetable]:
    """The schedules with names for stages on these ranks."""
    chunks = len(homes) // ranks
    if chunks == 1:
        yield one_f_one_b(ranks, micros)
    elif homes == folded(ranks):
        yield zb_v(ranks, micros)
    else:
        yield breadth_first(ranks, micros, chunks)
        if micros % ranks == 0:
            yield interleaved(ranks, micros, chunks)


def automatically(
    pipeline: Pipeline, homes: tuple[int, ...], ranks: int, micros: int, costs: Costs
) -> Simulation:
    """The best order within the memory. Where nothing is gained by splitting, whole backwards.

    A weight gradient that takes no time, as of frozen weights, fills no wait: then nothing is
    split, and for one stage a rank another order than 1F1B is only looked for where that takes too
    much memory.
    """
    memory = pipeline.memory or 1.0
    limits = [memory * ranks * unit(homes, costs)] * ranks
    trained = any(costs.weight)
    options: list[Simulation] = []
    for table in published(homes, ranks, micros):
        found = simulate(table if trained else unsplit(table), costs)
        if all(p <= most * (1 + 1e-9) for p, most in zip(found.peaks, limits, strict=True)):
            options.append(found)
    if trained:
        options += filter(None, [automatic(homes, micros, costs, limits)])
    elif not options or len(homes) > ranks:
        at_once = structs.replace(costs, late=(0.0,) * len(homes))
        made = automatic(homes, micros, at_once, limits)
        options += [simulate(unsplit(made.timetable), costs)] if made is not None else []
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
