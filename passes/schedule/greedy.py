"""A memory-bounded schedule for stages of any times: list scheduling under several rules.

As in Qi et al. 2023, section 3.1: forwards as long as memory lasts, then backward to the input as
soon as it can be done, weight gradients where a rank would wait or where memory is needed. What is
best depends on the times, so several rules are tried and simulated, and the best is kept; then the
rules of single ranks are varied for as long as that helps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heappop, heappush
from itertools import product

import msgspec
from msgspec import structs

from fllmc.ir.timetable import Action, Kind, Timetable
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.schedule.families import finished
from fllmc.passes.schedule.simulate import Simulation, simulate


class Rules(msgspec.Struct, frozen=True):
    """How a rank chooses among what it can do.

    `forward_first`: a forward that is ready goes before a backward. `ahead`: how many forwards more
    than 1F1B a rank begins with, as a share of the stages behind it; memory bounds it too.
    `patience`: a weight gradient is begun only if what is on its way comes no sooner than this
    share of its time; before the first backward, a forward only if that comes no sooner than its
    share `courtesy`. `deep`: of the stages of a rank, forwards of the last go first.
    """

    forward_first: bool = False
    ahead: float = 1.0
    patience: float = 0.5
    courtesy: float = 0.0
    deep: bool = False


RULES = tuple(
    Rules(*choice)
    for choice in product(
        (False, True), (0.0, 0.5, 0.8, 1.0, 1.02, 1.2, 2.0), (0.0, 0.5, 0.75, 1.0), (0.0, 1.0)
    )
)  # fmt: skip


class Rank:
    """One rank's state while the schedule is being made."""

    def __init__(
        self, rank: int, stages: Sequence[int], costs: Costs, limit: float, rules: Rules
    ) -> None:
        self.rank, self.stages, self.costs = rank, stages, costs
        self.limit, self.rules = limit, rules
        self.free = 0.0
        self.memory = 0.0
        self.forwards = dict.fromkeys(stages, 0)
        self.backwards = dict.fromkeys(stages, 0)
        self.waiting: deque[tuple[int, int]] = deque()
        self.row: list[Action] = []

    def fits(self, stage: int) -> bool:
        """Whether there is memory for a forward, and left for one of each later stage of the rank.

        So what is begun can always be finished.
        """
        later = sum(self.costs.kept[other] for other in self.stages if other >= stage)
        return self.memory + later <= self.limit * (1 + 1e-12)

    def does(self, kind: Kind, stage: int, micro: int, at: float) -> float:
        """Do it from `at` on; the time of its end."""
        self.row.append(Action(kind, stage, micro))
        self.memory += self.costs.memory(kind, stage)
        self.free = at + self.costs.time(kind, stage)
        if kind == "F":
            self.forwards[stage] += 1
        elif kind == "I":
            self.backwards[stage] += 1
            self.waiting.append((stage, micro))
        return self.free


class Maker:
    """Makes one timetable by one set of rules."""

    def __init__(
        self,
        homes: tuple[int, ...],
        micros: int,
        costs: Costs,
        limits: Sequence[float],
        rules: Sequence[Rules],
    ) -> None:
        self.homes, self.micros, self.costs = homes, micros, costs
        self.last = len(homes) - 1
        self.ranks = [
            Rank(rank, [s for s, home in enumerate(homes) if home == rank], costs, limit, rule)
            for rank, (limit, rule) in enumerate(zip(limits, rules, strict=True))
        ]
        self.arrived: dict[tuple[Kind, int, int], float] = {}
        self.links: dict[tuple[int, int], float] = {}
        self.sent: dict[tuple[int, int, Kind], deque[tuple[int, int]]] = {}
        self.turns: list[tuple[float, int]] = []

    def run(self, name: str) -> Timetable | None:
        """The timetable; None if these rules come to no end within the memory."""
        for rank in self.ranks:
            heappush(self.turns, (0.0, rank.rank))
        while self.turns:
            now, number = heappop(self.turns)
            rank = self.ranks[number]
            if now < rank.free:
                continue  # it has begun something else since
            rank.free = now
            if self.choose(rank):
                heappush(self.turns, (rank.free, number))
            elif (later := self.next_arrival(rank)) is not None:
                heappush(self.turns, (later, number))
        if any(len(rank.row) < 3 * self.micros * len(rank.stages) for rank in self.ranks):
            return None
        return finished(name, self.homes, self.micros, [rank.row for rank in self.ranks])

    def next_arrival(self, rank: Rank) -> float | None:
        """When the next thing that the rank waits for comes, as far as is known."""
        options = (self.candidate(rank, "I"), self.candidate(rank, "F"))
        return min((o[3] for o in options if o is not None and o[3] > rank.free), default=None)

    def ready(self, kind: Kind, stage: int, micro: int) -> float | None:
        """When the input of a forward or backward is at its rank; None if it is not made yet."""
        return 0.0 if kind == "F" and stage == 0 else self.arrived.get((kind, stage, micro))

    def choose(self, rank: Rank) -> bool:
        """Let a free rank do something now, if it can."""
        backward, forward = self.candidate(rank, "I"), self.candidate(rank, "F")
        options = [forward, backward] if rank.rules.forward_first else [backward, forward]
        for kind, stage, micro, at in filter(None, options):
            if at <= rank.free and not (kind == "F" and self.soon(rank, stage, backward)):
                self.do(rank, kind, stage, micro)
                return True
        if rank.waiting and self.worth(rank, [o for o in options if o is not None]):
            stage, micro = rank.waiting.popleft()
            rank.does("W", stage, micro, rank.free)
            return True
        return False

    def soon(self, rank: Rank, stage: int, backward: tuple[Kind, int, int, float] | None) -> bool:
        """Whether a backward comes so soon that a forward would keep it waiting too long."""
        courtesy = rank.rules.courtesy * self.costs.forward[stage]
        first = not any(rank.backwards.values())
        return first and backward is not None and rank.free < backward[3] < rank.free + courtesy

    def worth(self, rank: Rank, options: list[tuple[Kind, int, int, float]]) -> bool:
        """Whether to begin a weight gradient rather than wait for what is on its way."""
        stage, _ = rank.waiting[0]
        patience = rank.rules.patience * self.costs.weight[stage]
        return all(at <= rank.free or at >= rank.free + patience for *_, at in options)

    def candidate(self, rank: Rank, kind: Kind) -> tuple[Kind, int, int, float] | None:
        """The next forward or backward that is possible, with the time at which it is."""
        best: tuple[Kind, int, int, float] | None = None
        deep = kind == "I" or rank.rules.deep
        stages = reversed(rank.stages) if deep else rank.stages
        for stage in stages:
            micro = (rank.backwards if kind == "I" else rank.forwards)[stage]
            if micro >= self.micros or (kind == "F" and not self.may_forward(rank, stage)):
                continue
            at = self.ready(kind, stage, micro)
            if not self.first(rank.rank, kind, stage, micro):
                continue  # what was sent before it is taken before it
            if at is not None and (best is None or max(at, rank.free) < max(best[3], rank.free)):
                best = (kind, stage, micro, at)
        return best

    def first(self, rank: int, kind: Kind, stage: int, micro: int) -> bool:
        """Whether nothing that came on the same link is still to be taken."""
        source = stage - 1 if kind == "F" else stage + 1
        if not 0 <= source <= self.last:
            return True
        waiting = self.sent.get((self.homes[source], rank, kind))
        return not waiting or waiting[0] == (stage, micro)

    def may_forward(self, rank: Rank, stage: int) -> bool:
        """Whether memory and the rules allow one more forward of a stage."""
        behind = self.last - stage
        ahead = 1 + behind + rank.rules.ahead * behind
        return rank.fits(stage) and rank.forwards[stage] - rank.backwards[stage] < ahead

    def do(self, rank: Rank, kind: Kind, stage: int, micro: int) -> None:
        """Do it, and send the result on."""
        end = rank.does(kind, stage, micro, rank.free)
        source = stage - 1 if kind == "F" else stage + 1
        if 0 <= source <= self.last and self.homes[source] != rank.rank:
            self.sent[self.homes[source], rank.rank, kind].popleft()
        if kind == "F" and stage == self.last:
            self.arrived["I", stage, micro] = end
        target = stage + 1 if kind == "F" else stage - 1
        if 0 <= target <= self.last:
            home = self.homes[target]
            if home != rank.rank:
                link = (rank.rank, home)
                self.sent.setdefault((*link, kind), deque()).append((target, micro))
                self.links[link] = end = max(self.links.get(link, 0.0), end) + self.costs.transfer
            self.arrived[kind, target, micro] = end
            heappush(self.turns, (max(end, self.ranks[home].free), home))
        self.arrived.pop((kind, stage, micro), None)


Rated = tuple[float, float, Simulation, tuple[Rules, ...]]


class Search:
    """Tries rules for one problem; `limits` is the memory of each rank."""

    def __init__(
        self, homes: tuple[int, ...], micros: int, costs: Costs, limits: Sequence[float]
    ) -> None:
        self.homes, self.micros, self.costs, self.limits = homes, micros, costs, limits

    def rated(self, rules: tuple[Rules, ...]) -> Rated | None:
        """Bubble, memory and simulation of a timetable by these rules of the ranks."""
        made = Maker(self.homes, self.micros, self.costs, self.limits, rules).run("auto")
        if made is None:
            return None
        found = simulate(made, self.costs)
        return round(found.bubble, 12), max(found.peaks), found, rules

    def best(self) -> Rated | None:
        """The best of the rules in RULES, the same on all ranks."""
        rules = RULES
        if len(self.homes) > len(self.limits):
            rules += tuple(structs.replace(each, deep=True) for each in RULES)
        found = [self.rated((each,) * len(self.limits)) for each in rules]
        known = [each for each in found if each is not None]
        return min(known, key=lambda each: each[:2], default=None)

    def refined(self, start: Rated, tries: int) -> Rated:
        """The best after so many variations of single ranks' rules."""
        best, dice = start, Weyl()
        for _ in range(tries):
            rules = list(best[3])
            for _ in range(1 + int(3 * dice.next())):
                rank = int(len(rules) * dice.next())
                courtesy = max(0.0, 1.6 * dice.next() - 0.6)
                ahead, patience = 0.7 + 1.3 * dice.next(), 1.3 * dice.next()
                deep = rules[rank].deep
                rules[rank] = Rules(dice.next() < 0.3, ahead, patience, courtesy, deep)
            found = self.rated(tuple(rules))
            if found is not None and found[:2] <= best[:2]:
                best = found
        return best


class Weyl:
    """Numbers spread evenly over [0, 1): multiples of irrational numbers, the same anywhere."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> float:
        """The next number."""
        self.count += 1
        return (self.count * self.count * 0.6180339887498949) % 1.0


def automatic(
    homes: tuple[int, ...],
    micros: int,
    costs: Costs,
    limits: Sequence[float],
    effort: int = 60_000,
) -> Simulation | None:
    """The best timetable found, simulated; None if the memory is too little for any.

    `effort` bounds the refinement, in actions placed: a count, so that the same input gives the
    same timetable anywhere.
    """
    search = Search(homes, micros, costs, limits)
    best = search.best()
    if best is None:
        return None
    return search.refined(best, effort // (3 * micros * len(homes)))[2]
