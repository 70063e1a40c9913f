"""What each rank of a pipeline keeps under the budget of a schedule, each by itself.

Every rank has the same memory, but early ones hold more micro-batches at once: so stages are laid
out as they are, and those that are too large keep less of each micro-batch, until all fit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import structs

from fllmc.codegen.make_plan import derived_all
from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text, seconds_text
from fllmc.ir.settings import Spec
from fllmc.ir.target import Target
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.budget_choice import Choice, Held
from fllmc.passes.budget_decisions import value_decisions
from fllmc.passes.overlap import Overlap
from fllmc.passes.pipeline import cut_pipeline, standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.passes.stages.alike import like, outline
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import Asked
from fllmc.passes.stages.keep import Kept, Within

ROUNDS = 8
"""Layouts that are tried before as little is kept as can be."""


class StageTrial:
    """A spec's program once it is placed, and plans of its stages that keep more or less."""

    def __init__(
        self, spec: Spec, mesh: Mesh, asked: Asked, target: Target, beside: Overlap | None
    ) -> None:
        self.cx = Context(mesh, lambda found: None)
        self.asked, self.target = asked, target
        self.total = int(spec.schedule.budget_gib * 2**30)
        self.microbatches = spec.schedule.microbatches
        schedule = spec.schedule
        self.within = Within(
            schedule.recompute,
            target,
            host=schedule.host_bytes(target),
            offload=schedule.offload,
            beside=schedule.overlap == "on",
        )
        first, self.then = cut_pipeline(standard_pipeline(spec, self.within, beside))
        self.before = run_pipeline(spec.program, first, self.cx, lambda: 0.0)[0]
        self.done: dict[bytes, Program] = {}
        cut = stage_programs(self.before, asked, self.microbatches, target, self.within)
        homes = cut.work.timetable.homes if cut.work is not None else ()
        self.within = structs.replace(self.within, homes=homes)
        self.kept: tuple[Kept, ...] = cut.kept
        self.known: dict[tuple[int, int], Choice] = {}
        wholes = [each.whole for each in self.kept]
        self.same = [wholes.index(whole) for whole in wholes]

    def choice(self, rank: int, budget: int) -> Choice:
        """What a rank holds within so many bytes; the fewest bytes where there are less."""
        key = (self.same[rank], budget)
        if key not in self.known:
            whole = self.kept[rank].whole
            self.known[key] = whole.choose(max(budget, whole.least if whole.parts else 0))
        return self.known[key]

    def arenas(self, choices: Sequence[Choice]) -> list[int]:
        """Bytes of each rank when it holds what was chosen."""
        held = self.keeping(choices)
        cut = stage_programs(self.before, self.asked, self.microbatches, self.target, held)
        for stage in cut.programs:
            if outline(stage) not in self.done:
                done = run_pipeline(stage, self.then, self.cx, lambda: 0.0)[0]
                self.done[outline(stage)] = done
        ends = [like(self.done[outline(stage)], stage) for stage in cut.programs]
        return [made.arena_bytes for made in derived_all(ends)]

    def least(self) -> list[Choice]:
        """The fewest bytes of every rank."""
        return [self.choice(rank, 0) for rank in range(len(self.kept))]

    def at_least(self) -> tuple[int, int]:
        """Bytes of the fullest rank when as little is kept as can be, and how many are kept."""
        least = self.least()
        return max(zip(self.arenas(least), (choice.bytes for choice in least), strict=True))

    def keeping(self, choices: Sequence[Choice]) -> Within:
        """That each rank holds what was chosen."""
        return structs.replace(self.within, held=tuple(choice.held for choice in choices))

    def fitting(self) -> list[Choice] | None:
        """For each rank the choice of most bytes found with which it fits."""
        least, every = self.least(), range(len(self.kept))
        most = [sum(cost or 0 for cost in each.whole.instance.costs) for each in self.kept]
        choices = [self.choice(rank, most[rank]) for rank in every]
        for last in range(ROUNDS):
            over = [arena - self.total for arena in self.arenas(choices)]
            if max(over) <= 0:
                return choices
            if any(over[rank] > 0 and choices[rank] == least[rank] for rank in every):
                return None
            for rank in every:
                if over[rank] > 0:
                    budget = choices[rank].bytes - over[rank]
                    last_time = last == ROUNDS - 2
                    choices[rank] = least[rank] if last_time else self.choice(rank, budget)
        return None

    def decisions(self, choices: Sequence[Choice]) -> Iterator[Decision]:
        """What was chosen for each rank, then value by value for all ranks that hold the same."""
        held = [(choice.held, len(choice.kept)) for choice in choices]
        for rank, choice in enumerate(choices):
            least = self.choice(rank, 0)
            away = f", {bytes_text(choice.host_bytes)} in host memory" if choice.away else ""
            yield Decision(
                f"what is kept on {self.asked.axis} {rank}",
                f"{bytes_text(choice.bytes)}{away}, and {seconds_text(choice.seconds)} of "
                f"{'copies and ' if away else ''}recomputing for a micro-batch",
                f"a rank has {bytes_text(self.total)}, and {proof(choice)} on {self.target.name}; "
                f"micro-batches in flight at once: {self.in_flight(rank)}",
                f"keeping {bytes_text(least.bytes)}: {seconds_text(least.seconds)} of recomputing",
            )
        for rank, choice in enumerate(choices):
            if held.index(held[rank]) == rank:
                alike = ", ".join(str(r) for r in range(len(held)) if held[r] == held[rank])
                yield from self.by_value(rank, choice.held, choice.bytes, alike)

    def by_value(self, rank: int, held: Held, budget: int, ranks: str) -> Iterator[Decision]:
        """The decisions about single values of a rank, told of all these ranks."""
        kept = self.kept[rank]
        for at, (_, stage) in enumerate(kept.stages):
            for found in value_decisions(stage.program, kept.whole, held, budget, (at,)):
                subject = f"{self.asked.axis} {ranks}: {found.subject}"
                yield structs.replace(found, subject=subject)

    def in_flight(self, rank: int) -> str:
        """How many micro-batches each stage of a rank holds at once."""
        return " and ".join(str(count) for count in self.kept[rank].in_flight) or "none"


def proof(choice: Choice) -> str:
    """How good a choice is, as far as is proven."""
    if choice.gap > 1e-6:
        return f"no choice is more than {100 * choice.gap:.1f} % faster"
    return "no choice is faster"
