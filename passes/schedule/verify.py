"""The verifier: whether a timetable does a training step, and comes to its end.

What is wrong is told by the action where it shows. A timetable without faults does every stage and
micro-batch exactly once forward and backward, each rank its own stages, in an order in which every
value is made before it is waited for, and taken on each channel in the order in which it is sent.
Sends do not wait for their receivers; those of one pass from one rank to another share a channel.
What the ranks' turns become of it, `codegen/handovers.py` proves for sends that are not buffered.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterator
from typing import Literal

import msgspec

from fllmc.ir.timetable import Action, Timetable
from fllmc.passes.schedule.costs import Costs, uniform
from fllmc.passes.schedule.simulate import needs, peaks, simulate

Wrong = Literal[
    "missing", "twice", "misplaced", "unknown", "unordered", "deadlock", "crossed", "memory"
]


class Fault(msgspec.Struct, frozen=True):
    """One thing that is wrong, at an action or (`memory`) on a rank. `text` says it in words."""

    kind: Wrong
    rank: int
    text: str
    action: Action | None = None


def faults(
    timetable: Timetable,
    *,
    trained: Collection[int] | None = None,
    costs: Costs | None = None,
    limit: float | None = None,
) -> tuple[Fault, ...]:
    """Everything that is wrong with a timetable of a training step.

    `trained` are the stages with a backward (default: all; none for evaluation): the stages from
    the first of them on hand cotangents back. With a `limit`, no rank keeps more memory than it,
    in the units of `costs`.
    """
    stages = frozenset(range(timetable.stages) if trained is None else trained)
    found = [*_work(timetable, stages)]
    if not found:
        found += _order(timetable)
    if not found:
        found += crossings(timetable)
        simulation = simulate(timetable, costs or uniform(timetable.stages))
        found += [
            Fault("deadlock", timetable.homes[a.stage], f"`{a}` waits for ever", a)
            for a in simulation.stuck
        ]
        found += _memory(timetable, costs, limit)
    return tuple(found)


def _work(timetable: Timetable, trained: frozenset[int]) -> Iterator[Fault]:
    """Actions that are missing, done twice, done by the wrong rank, or of no such stage."""
    counts = Counter(action for row in timetable.rows for action in row)
    for rank, row in enumerate(timetable.rows):
        for action in row:
            known = 0 <= action.stage < timetable.stages and 0 <= action.micro < timetable.micros
            if not known or (action.kind != "F" and action.stage not in trained):
                yield Fault("unknown", rank, f"there is no `{action}` to do", action)
            elif timetable.homes[action.stage] != rank:
                home = timetable.homes[action.stage]
                text = f"`{action}` stands on rank {rank}, its stage on rank {home}"
                yield Fault("misplaced", rank, text, action)
    for action, count in sorted(counts.items()):
        if count > 1:
            rank = timetable.homes[action.stage] if action.stage < timetable.stages else 0
            yield Fault("twice", rank, f"`{action}` is done {count} times", action)
    for stage in range(timetable.stages):
        for micro in range(timetable.micros):
            yield from _complete(timetable, counts, stage, micro, stage in trained)


def _complete(
    timetable: Timetable, counts: Counter[Action], stage: int, micro: int, trained: bool
) -> Iterator[Fault]:
    """F once; and, where it is trained, either B or both I and W."""
    home = timetable.homes[stage]

    def has(kind: Literal["F", "B", "I", "W"]) -> bool:
        return counts[Action(kind, stage, micro)] > 0

    if not has("F"):
        action = Action("F", stage, micro)
        yield Fault("missing", home, f"`{action}` is never done", action)
    if not trained:
        return
    if has("B") and (has("I") or has("W")):
        action = Action("B", stage, micro)
        yield Fault("twice", home, f"`{action}` is done, and its parts too", action)
    elif not has("B"):
        for kind in ("I", "W"):
            if not has(kind):
                action = Action(kind, stage, micro)
                text = f"neither `B{stage}.{micro}` nor `{action}` is done"
                yield Fault("missing", home, text, action)


def _order(timetable: Timetable) -> Iterator[Fault]:
    """Actions that stand before what they need in one row."""
    for rank, row in enumerate(timetable.rows):
        position = {action: at for at, action in enumerate(row)}
        for action in row:
            split = Action("I", action.stage + 1, action.micro) in position
            for other in needs(action, timetable.stages, split):
                if position.get(other, -1) > position[action]:
                    text = f"`{action}` stands before `{other}`, which it needs"
                    yield Fault("unordered", rank, text, action)


def channels(timetable: Timetable) -> dict[tuple[int, int, str], tuple[list[Action], list[Action]]]:
    """For each sender, receiver and direction: the order of making, and that of taking.

    The direction is `F` (activations) or `B` (cotangents); each has a communicator of its own.
    """
    found: dict[tuple[int, int, str], tuple[list[Action], list[Action]]]
    found = defaultdict(lambda: ([], []))
    homes, last = timetable.homes, timetable.stages - 1
    done = {action for row in timetable.rows for action in row}
    for rank, row in enumerate(timetable.rows):
        for action in row:
            if action.kind == "W":
                continue
            forward = action.kind == "F"
            step = 1 if forward else -1
            ahead, behind = action.stage + step, action.stage - step
            way = "F" if forward else "B"
            if 0 <= ahead <= last and homes[ahead] != rank and _handed(done, action, ahead):
                found[rank, homes[ahead], way][0].append(action)
            if 0 <= behind <= last and homes[behind] != rank:
                made = _maker(done, action, behind)
                if made is not None:
                    found[homes[behind], rank, way][1].append(made)
    return dict(found)


def _handed(done: set[Action], action: Action, ahead: int) -> bool:
    """Whether another stage takes the action's result."""
    kinds = ("F",) if action.kind == "F" else ("B", "I")
    return any(Action(kind, ahead, action.micro) in done for kind in kinds)


def _maker(done: set[Action], action: Action, behind: int) -> Action | None:
    """The action that makes what this one takes."""
    kinds = ("F",) if action.kind == "F" else ("B", "I")
    made = (Action(kind, behind, action.micro) for kind in kinds)
    return next((each for each in made if each in done), None)


def crossings(timetable: Timetable) -> Iterator[Fault]:
    """Channels on which values would be taken in another order than they are sent."""
    for (sender, receiver, _), (sent, taken) in sorted(channels(timetable).items()):
        for first, second in zip(sent, taken, strict=False):
            if first != second:
                text = f"rank {receiver} waits for `{second}` where rank {sender} sends `{first}`"
                yield Fault("crossed", receiver, text, second)
                break


def _memory(timetable: Timetable, costs: Costs | None, limit: float | None) -> Iterator[Fault]:
    if costs is None or limit is None:
        return
    for rank, most in enumerate(peaks(timetable, costs)):
        if most > limit * (1 + 1e-9):
            text = f"rank {rank} keeps {most:g} at once, over {limit:g} by {most - limit:g}"
            yield Fault("memory", rank, text)
