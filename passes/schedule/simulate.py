"""The event-driven simulator: when each action of a timetable runs, on ranks and links.

A rank does the work of its row in order, each as soon as what it needs is there. A value for
another rank goes over the link between the two, which carries one value at a time in each
direction, while the ranks work on.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fllmc.ir.timetable import Action, Timed, Timetable
from fllmc.passes.schedule.costs import Costs


class Simulation(msgspec.Struct, frozen=True):
    """The times of a step. `begins` and `ends` are by action, `peaks` by rank.

    `stuck` holds each rank's next action where the step does not come to its end.
    """

    timetable: Timetable
    begins: Mapping[Action, float]
    ends: Mapping[Action, float]
    peaks: tuple[float, ...]
    stuck: tuple[Action, ...] = ()

    @property
    def makespan(self) -> float:
        """From the first begin to the last end."""
        return max(self.ends.values(), default=0.0)

    def span(self, rank: int) -> float:
        """From the begin of a rank's first action to the end of its last."""
        row = self.timetable.rows[rank]
        return self.ends[row[-1]] - self.begins[row[0]] if row else 0.0

    @property
    def timeline(self) -> tuple[Timed, ...]:
        """Every action with its times, rank by rank."""
        return tuple(
            Timed(rank, action, self.begins[action], self.ends[action])
            for rank, row in enumerate(self.timetable.rows)
            for action in row
        )

    def busy(self, rank: int) -> float:
        """The time that a rank works."""
        return sum(self.ends[each] - self.begins[each] for each in self.timetable.rows[rank])

    @property
    def bubble(self) -> float:
        """The idle share of the longest span of a rank (Qi et al. 2023, section 5.3)."""
        ranks = range(self.timetable.ranks)
        longest = max(self.span(rank) for rank in ranks)
        return 1.0 - max(self.busy(rank) for rank in ranks) / longest if longest else 0.0


def needs(action: Action, stages: int, split: bool) -> tuple[Action, ...]:
    """What must be done before an action, beside what stands before it in its row.

    `split` tells whether the backward of the stage behind hands over at I instead of B.
    """
    kind, stage, micro = action.kind, action.stage, action.micro
    if kind == "F":
        return (Action("F", stage - 1, micro),) if stage else ()
    if kind == "W":
        return (Action("I", stage, micro),)
    own = Action("F", stage, micro)
    if stage == stages - 1:
        return (own,)
    return own, Action("I" if split else "B", stage + 1, micro)


def simulate(timetable: Timetable, costs: Costs) -> Simulation:
    """The times of every action, and the most memory that each rank has at once."""
    begins: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    links: dict[tuple[int, int], float] = {}
    arrivals: dict[Action, float] = {}
    split = {a.stage for row in timetable.rows for a in row if a.kind == "I"}
    backward = {a.stage for row in timetable.rows for a in row if a.kind in "BI"}
    nexts = [0] * timetable.ranks
    free = [0.0] * timetable.ranks

    def send(action: Action) -> None:
        """Note when the result is where it is needed; a link carries results as they are made."""
        arrivals[action] = ends[action]
        target = action.stage + (1 if action.kind == "F" else -1)
        if action.kind == "W" or not 0 <= target < timetable.stages:
            return
        link = (timetable.homes[action.stage], timetable.homes[target])
        if link[0] != link[1] and (action.kind == "F" or target in backward):
            links[link] = max(links.get(link, 0.0), ends[action]) + costs.transfer
            arrivals[action] = links[link]

    def arrival(action: Action, rank: int) -> float | None:
        """When the result of an action is at a rank; None if it is not made yet."""
        own = timetable.homes[action.stage] == rank
        return ends.get(action) if own else arrivals.get(action)

    def ready(action: Action, rank: int) -> float | None:
        """When everything that the action needs is there."""
        latest = 0.0
        for other in needs(action, timetable.stages, action.stage + 1 in split):
            if other.kind in "BI" and other.stage not in backward:
                continue  # nothing behind it is trained, so nothing is handed back
            at = arrival(other, rank)
            if at is None:
                return None
            latest = max(latest, at)
        return latest

    moved = True
    while moved:
        moved = False
        for rank, row in enumerate(timetable.rows):
            while nexts[rank] < len(row):
                action = row[nexts[rank]]
                at = ready(action, rank)
                if at is None:
                    break
                begins[action] = max(free[rank], at)
                ends[action] = free[rank] = begins[action] + costs.time(action.kind, action.stage)
                send(action)
                nexts[rank] += 1
                moved = True
    stuck = tuple(row[at] for row, at in zip(timetable.rows, nexts, strict=True) if at < len(row))
    return Simulation(timetable, begins, ends, peaks(timetable, costs), stuck)


def peaks(timetable: Timetable, costs: Costs) -> tuple[float, ...]:
    """The most memory kept for the backward pass at once, by rank."""
    found: list[float] = []
    for row in timetable.rows:
        now = most = 0.0
        for action in row:
            now += costs.memory(action.kind, action.stage)
            most = max(most, now)
        found.append(most)
    return tuple(found)
