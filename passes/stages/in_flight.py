"""How many messages of a kind are under way at once, found by running the timetable in thought.

Every action takes one unit of time (two for a whole backward) and begins when the one before it on
its rank has ended and what it takes has been made. A buffer that was sent from is free when the
receiver begins the action that takes the message. Since these times are an order in which all
waits end, so is the run's, with as many buffers as are in use at once here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import get_args

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.timetable import Kind
from fllmc.passes.stages.cut_body import Message, StageWork


def begin_times(works: Sequence[StageWork], rows: Sequence[Sequence[str]]) -> dict[str, int]:
    """When each action begins. InternalError where actions wait for each other for ever."""
    begun: dict[str, int] = {}
    ended: dict[tuple[Message, int], int] = {}
    done = [0] * len(rows)
    free = [0] * len(rows)
    while any(at < len(row) for at, row in zip(done, rows, strict=True)):
        moved = False
        for rank, row in enumerate(rows):
            while done[rank] < len(row):
                kind, stage, micro = parsed(row[done[rank]])
                work = works[stage]
                function = work.functions[kind]
                names = [given.name for given in function.inputs]
                taken = [(work.takes[name], micro) for name in names if name in work.takes]
                if any(key not in ended for key in taken):
                    break
                start = max([free[rank], *(ended[key] for key in taken)])
                begun[row[done[rank]]] = start
                free[rank] = start + (2 if kind == "B" else 1)
                for name in function.outputs:
                    if name in work.gives:
                        ended[work.gives[name], micro] = free[rank]
                done[rank] += 1
                moved = True
        if not moved:
            stuck = [row[at] for at, row in zip(done, rows, strict=True) if at < len(row)]
            raise InternalError(f"no stage can go on: {', '.join(stuck)}")
    return begun


def parsed(action: str) -> tuple[Kind, int, int]:
    """Kind, stage and micro-batch of an action's text."""
    stage, _, micro = action[1:].partition(".")
    kind = next(each for each in get_args(Kind) if each == action[0])
    return kind, int(stage), int(micro)


def buffer_counts(
    works: Sequence[StageWork], rows: Sequence[Sequence[str]]
) -> Mapping[Message, int]:
    """For each message the buffers that its sender needs."""
    begun = begin_times(works, rows)
    made: dict[Message, dict[int, int]] = {}
    freed: dict[Message, dict[int, int]] = {}
    for action, time in sorted(begun.items(), key=lambda item: item[1], reverse=True):
        kind, stage, micro = parsed(action)
        work = works[stage]
        for name in work.functions[kind].outputs:
            if name in work.gives:
                made.setdefault(work.gives[name], {})[micro] = time
        for given in work.functions[kind].inputs:
            if given.name in work.takes:  # the first to take it comes last here
                freed.setdefault(work.takes[given.name], {})[micro] = time
    for action, time in begun.items():  # what the sender reads itself keeps the buffer as well
        kind, stage, micro = parsed(action)
        for given in works[stage].functions[kind].inputs:
            message = works[stage].gives.get(given.name)
            if message is not None:
                freed[message][micro] = max(freed[message][micro], time + 1)
    return {message: _in_turn(times, freed[message]) for message, times in made.items()}


def _in_turn(made: Mapping[int, int], freed: Mapping[int, int]) -> int:
    """The least number of buffers that, used in turn, are each free when their turn comes."""
    order = sorted(made, key=lambda micro: made[micro])
    return 1 + max(
        back
        for at, micro in enumerate(order)
        for back in range(at + 1)
        if back == 0 or freed[order[at - back]] > made[micro]
    )
