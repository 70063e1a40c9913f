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

    `stuck` holds each rank's next action where the step does not come to its end. No order of the
    same work within the same memory has a bubble below `bound`, as far as is proven.
    """

    timetable: Timetable
    begins: Mapping[Action, float]
    ends: Mapping[Action, float]
    peaks: tuple[float, ...]
    stuck: tuple[Action, ...] = ()
    bound: float = 0.0

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


class Deliveries:
    """When results are where they are needed; a link carries them as they are made."""

    def __init__(self, timetable: Timetable, transfer: float) -> None:
        self.timetable, self.transfer = timetable, transfer
        self.backward = {a.stage for row in timetable.rows for a in row if a.kind in "BI"}
        self._links: dict[tuple[int, int], float] = {}
        self._arrivals: dict[Action, float] = {}

    def send(self, action: Action, end: float) -> None:
        """Note a result that is made at `end`, and when it is where another stage takes it."""
        self._arrivals[action] = end
        target = action.stage + (1 if action.kind == "F" else -1)
        if action.kind == "W" or not 0 <= target < self.timetable.stages:
            return
        link = (self.timetable.homes[action.stage], self.timetable.homes[target])
        if link[0] != link[1] and (action.kind == "F" or target in self.backward):
            self._links[link] = max(self._links.get(link, 0.0), end) + self.transfer
            self._arrivals[action] = self._links[link]

    def arrival(self, action: Action) -> float | None:
        """When the result is at the rank that takes it; None if it is not made yet."""
        return self._arrivals.get(action)


def simulate(timetable: Timetable, costs: Costs) -> Simulation:
    """The times of every action, and the most memory that each rank has at once."""
    begins: dict[Action, float] = {}
    ends: dict[Action, float] = {}
    made = Deliveries(timetable, costs.transfer)
    split = {a.stage for row in timetable.rows for a in row if a.kind == "I"}
    nexts = [0] * timetable.ranks
    free = [0.0] * timetable.ranks

    def ready(action: Action) -> float | None:
        """When everything that the action needs is there."""
        latest = 0.0
        for other in needs(action, timetable.stages, action.stage + 1 in split):
            if other.kind in "BI" and other.stage not in made.backward:
                continue  # nothing behind it is trained, so nothing is handed back
            own = other.stage == action.stage
            at = ends.get(other) if own else made.arrival(other)
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
                at = ready(action)
                if at is None:
                    break
                begins[action] = max(free[rank], at)
                ends[action] = free[rank] = begins[action] + costs.time(action.kind, action.stage)
                made.send(action, ends[action])
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
