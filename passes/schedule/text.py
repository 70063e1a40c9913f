"""Timetables as text: a form that parses back, and a picture of a simulation in characters."""

from __future__ import annotations

import re
from typing import cast

from fllmc.ir.timetable import Action, Kind, Timetable
from fllmc.passes.schedule.simulate import Simulation

ACTION = re.compile(r"([FBIW])(\d+)\.(\d+)")
HEAD = re.compile(r"timetable (\w+): ranks (\d+), micros (\d+), homes ([\d ]+)")


def print_timetable(table: Timetable) -> str:
    """The timetable: a head, then a line for each rank.

    timetable 1f1b: ranks 2, micros 2, homes 0 1
    0: F0.0 F0.1 B0.0 B0.1
    1: F1.0 B1.0 F1.1 B1.1
    """
    homes = " ".join(map(str, table.homes))
    lines = [f"timetable {table.name}: ranks {table.ranks}, micros {table.micros}, homes {homes}"]
    lines += [f"{rank}: {' '.join(map(str, row))}" for rank, row in enumerate(table.rows)]
    return "\n".join(lines) + "\n"


def parse_timetable(text: str) -> Timetable:
    """What `print_timetable` printed. ValueError, with the line, for anything else."""
    lines = text.splitlines()
    head = HEAD.fullmatch(lines[0]) if lines else None
    if head is None:
        raise ValueError(f"not the head of a timetable: {lines[0] if lines else ''!r}")
    name, ranks, micros, homes = head.groups()
    rows = tuple(_row(line, rank) for rank, line in enumerate(lines[1:]))
    if len(rows) != int(ranks):
        raise ValueError(f"{len(rows)} rows for {ranks} ranks")
    places = tuple(map(int, homes.split()))
    return Timetable(name, int(ranks), len(places), int(micros), places, rows)


def _row(line: str, rank: int) -> tuple[Action, ...]:
    label, _, rest = line.partition(":")
    found = [ACTION.fullmatch(word) for word in rest.split()]
    if label != str(rank) or not all(found):
        raise ValueError(f"not the row of rank {rank}: {line!r}")
    return tuple(Action(cast(Kind, each[1]), int(each[2]), int(each[3])) for each in found if each)


def picture(simulation: Simulation, columns: int = 160) -> list[str]:
    """A line for each rank, time to the right: kind and micro-batch, dots where it waits.

    A column is the time of the shortest action, or more where that would take too many.
    """
    times = [simulation.ends[a] - begin for a, begin in simulation.begins.items()]
    unit = max(
        min((time for time in times if time > 0), default=1.0),
        simulation.makespan / max(1, columns // 3),
    )
    return [_drawn(simulation, rank, unit) for rank in range(simulation.timetable.ranks)]


def _drawn(simulation: Simulation, rank: int, unit: float) -> str:
    cells = ["  ." for _ in range(round(simulation.makespan / unit))]
    for action in simulation.timetable.rows[rank]:
        first = round(simulation.begins[action] / unit)
        for at in range(first, min(round(simulation.ends[action] / unit), len(cells))):
            mark = (
                action.kind.lower() if action.stage >= simulation.timetable.ranks else action.kind
            )
            cells[at] = f"{mark}{action.micro}".rjust(3) if at == first else "  -"
    return f"{rank:>3}{''.join(cells)}"
