"""The best order of work there is, or one with a bound: by constraint programming (CP-SAT).

Every action has a time to begin, those of a rank exclude each other, and what is handed on is there
before it is taken. Micro-batches are alike, so each stage may take them in order: where another
order is possible, the same times in order are too. For each forward, booleans tell which actions
that give back memory come before it, and their sum has to leave it room. What is made least is the
longest span of a rank. Times are rounded down to whole units, so what is proven of them holds. An
order that takes values of a link otherwise than they are sent is not used: then the start stays.

The search has one worker, a fixed seed and a limit that the solver counts in its own steps, never a
clock: the same input and version of OR-tools give the same order.
"""

# pyright: basic
# (OR-tools says little of its types)

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

from msgspec import structs

from fllmc.ir.timetable import Action, Kind
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.schedule.families import finished
from fllmc.passes.schedule.simulate import Simulation, needs, simulate
from fllmc.passes.schedule.verify import crossings

if TYPE_CHECKING:
    from ortools.sat.python.cp_model import CpModel, CpSolver

EFFORT: Final = 60.0
"""Units of the solver's deterministic time: about a minute on one core."""
UNITS: Final = 50_000
"""Of time, in the work of a micro-batch on the slowest rank."""
PARTS: Final = 10**9
"""Of memory, in what the stage that keeps most keeps of a micro-batch."""


def installed() -> bool:
    """Whether OR-tools is there: the extra `fllmc[solver]`."""
    return find_spec("ortools") is not None


def exact(
    start: Simulation, costs: Costs, limits: Sequence[float], effort: float = EFFORT
) -> Simulation:
    """An order no worse than `start`, which is the hint, with the bubble that none is below.

    `limits` is the memory of each rank. Precondition: `installed()`.
    """
    from ortools.sat.python import cp_model

    problem = Problem(start, costs, limits)
    solver = cp_model.CpSolver()
    parameters: Any = solver.parameters
    parameters.num_workers = 1
    parameters.random_seed = 1
    parameters.max_deterministic_time = effort
    parameters.linearization_level = 0  # bounds by linear programs cost more than they cut
    status = solver.solve(problem.model)
    best = start
    if status in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        made = simulate(problem.timetable(solver), costs)
        fits = all(p <= m * (1 + 1e-9) for p, m in zip(made.peaks, limits, strict=True))
        sound = not made.stuck and not any(crossings(made.timetable))
        if fits and sound and made.bubble < best.bubble:
            best = made
    return structs.replace(best, bound=problem.bubble(best, solver.best_objective_bound))


class Problem:
    """The constraints of one problem."""

    def __init__(self, start: Simulation, costs: Costs, limits: Sequence[float]) -> None:
        from ortools.sat.python import cp_model

        self.model: CpModel = cp_model.CpModel()
        self.table, self.costs = start.timetable, costs
        self.kinds: tuple[Kind, ...] = ("F", "I", "W") if any(costs.weight) else ("F", "B")
        self.begins = hinted(start, costs, self.kinds)
        ranks = range(self.table.ranks)
        self.stages = [[s for s, home in enumerate(self.table.homes) if home == r] for r in ranks]
        work = max(sum(map(self.whole, stages)) for stages in self.stages)
        self.scale = UNITS / work
        self.last = int(max(start.makespan * self.scale, 1)) + 1
        self.at: dict[Action, Any] = {
            action: self.model.new_int_var(0, self.last, str(action)) for action in self.begins
        }
        self.transfer = int(costs.transfer * self.scale)
        for action in self.at:
            self.follow(action)
        for rank in ranks:
            self.exclude(rank)
            self.fit(rank, limits[rank])
        self.least()
        for action, begin in self.begins.items():
            self.model.add_hint(self.at[action], int(begin * self.scale))

    def whole(self, stage: int) -> float:
        """The time of a micro-batch's actions on a stage."""
        return sum(self.costs.time(kind, stage) for kind in self.kinds)

    def length(self, action: Action) -> int:
        """The units that an action takes."""
        return int(self.costs.time(action.kind, action.stage) * self.scale)

    def end(self, action: Action) -> Any:
        """When it ends."""
        return self.at[action] + self.length(action)

    def follow(self, action: Action) -> None:
        """It begins after what it needs, and after the same for the micro-batch before."""
        homes, split = self.table.homes, "I" in self.kinds
        for other in needs(action, self.table.stages, split):
            away = homes[other.stage] != homes[action.stage]
            self.model.add(self.at[action] >= self.end(other) + (self.transfer if away else 0))
        if action.micro:
            before = structs.replace(action, micro=action.micro - 1)
            self.model.add(self.at[action] >= self.end(before))

    def exclude(self, rank: int) -> None:
        """A rank does one thing at a time, and a link carries one value at a time."""
        own = [action for action in self.at if action.stage in self.stages[rank]]
        self.alone([(self.at[action], self.length(action)) for action in own])
        links: dict[int, list[Action]] = {}
        for action in own:
            target = action.stage + (1 if action.kind == "F" else -1)
            if action.kind != "W" and 0 <= target < self.table.stages:
                links.setdefault(self.table.homes[target], []).append(action)
        for target, sent in links.items():
            if target != rank and self.transfer > min(map(self.length, sent)):
                self.carry(sent)

    def alone(self, stretches: Sequence[tuple[Any, int]]) -> None:
        """None of these overlap."""
        self.model.add_no_overlap(
            [self.model.new_fixed_size_interval_var(at, size, "") for at, size in stretches]
        )

    def carry(self, sent: Sequence[Action]) -> None:
        """A link takes these results, one after the other, to where they are needed."""
        stretches: list[tuple[Any, int]] = []
        for action in sent:
            step = 1 if action.kind == "F" else -1
            taker = structs.replace(action, stage=action.stage + step)
            go = self.model.new_int_var(0, self.last, "")
            self.model.add(go >= self.end(action))
            self.model.add(self.at[taker] >= go + self.transfer)
            stretches.append((go, self.transfer))
        self.alone(stretches)

    def fit(self, rank: int, limit: float) -> None:
        """Before each forward enough has been given back."""
        most = max(self.costs.kept[stage] for stage in self.stages[rank])
        if not most:
            return
        parts = PARTS / most
        room = int(limit * parts) + 3 * len(self.stages[rank]) * self.table.micros
        for stage in self.stages[rank]:
            for micro in range(self.table.micros):
                self.leave_room(rank, Action("F", stage, micro), parts, room)

    def leave_room(self, rank: int, forward: Action, parts: float, room: int) -> None:
        """What is kept when a forward begins, and what it adds, is within the room."""
        own = round(self.costs.kept[forward.stage] * parts) * (forward.micro + 1)
        groups: list[tuple[int, list[Action]]] = []
        for stage in self.stages[rank]:
            for kind in self.kinds:
                size = round(self.costs.memory(kind, stage) * parts)
                count = forward.micro if stage == forward.stage else self.table.micros
                others = [Action(kind, stage, micro) for micro in range(count)]
                if size and not (stage == forward.stage and kind == "F"):
                    groups.append((size, others))
        most = own + sum(size * len(others) for size, others in groups if size > 0)
        if most > room:
            given = [size * sum(self.before(others, forward)) for size, others in groups]
            self.model.add(own + sum(given) <= room)

    def before(self, others: Sequence[Action], forward: Action) -> list[Any]:
        """For each of some actions, in their order, whether it comes before a forward."""
        known: list[Any] = []
        for other in others:
            first = self.model.new_bool_var("")
            self.model.add(self.end(other) <= self.at[forward]).only_enforce_if(first)
            self.model.add(self.end(forward) <= self.at[other]).only_enforce_if(~first)
            self.model.add_hint(first, self.begins[other] < self.begins[forward])
            known.append(first)
        for early, late in pairwise(known):
            self.model.add_implication(late, early)
        return known

    def least(self) -> None:
        """Every rank begins as soon as it can; the longest span is what is to be least."""
        span = self.model.new_int_var(0, self.last, "span")
        homes, ready = self.table.homes, 0
        begun: set[int] = set()
        for stage, home in enumerate(homes):
            first = Action("F", stage, 0)
            if stage and homes[stage - 1] != home:
                ready += self.transfer
            if home not in begun:
                begun.add(home)
                self.model.add(self.at[first] == ready)
                for own in self.stages[home]:
                    for kind in self.kinds:
                        final = Action(kind, own, self.table.micros - 1)
                        self.model.add(self.end(final) - ready <= span)
            ready += self.length(first)
        self.model.minimize(span)

    def timetable(self, solver: CpSolver) -> Any:
        """The order that the solver found."""
        rows = [
            sorted(
                (action for action in self.at if action.stage in stages),
                key=lambda action: (solver.value(self.at[action]), solver.value(self.end(action))),
            )
            for stages in self.stages
        ]
        return finished("auto", self.table.homes, self.table.micros, rows)

    def bubble(self, best: Simulation, span: float) -> float:
        """The bubble that no order is below, by the span in units that none is below."""
        busy = max(best.busy(rank) for rank in range(self.table.ranks))
        return min(max(0.0, 1 - busy / (span / self.scale)), best.bubble) if span > 0 else 0.0


def hinted(start: Simulation, costs: Costs, kinds: Sequence[Kind]) -> Mapping[Action, float]:
    """When each action begins in a known order, in this order.

    A whole backward is two actions where others may come between them.
    """
    begins: dict[Action, float] = {}
    for row in start.timetable.rows:
        for action in row:
            begin = start.begins[action]
            if action.kind == "B" and "I" in kinds:
                begins[Action("I", action.stage, action.micro)] = begin
                begin += costs.input[action.stage]
                action = Action("W", action.stage, action.micro)
            begins[action] = begin
    return begins
