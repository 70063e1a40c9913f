"""What is kept under the budget of a schedule: how many bytes of it leave a rank within its memory.

What a rank holds beside kept values depends a little on what is recomputed, so the plan is laid out
for a budget of kept bytes, and that is lowered by what the whole is too large, until it fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import structs

from fllmc.codegen.make_plan import derived_all
from fllmc.frontend.targets import load_target
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import Decision, Plan
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text, seconds_text
from fllmc.ir.settings import Schedule, Spec
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context, Pass
from fllmc.passes.budget_choice import Choice
from fllmc.passes.budget_decisions import value_decisions
from fllmc.passes.errors import BudgetUnmet, HostTooSmall
from fllmc.passes.exposure import exposure
from fllmc.passes.overlap import Overlap
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.recompute import Recompute
from fllmc.passes.recompute_budget import Room, Whole, everything
from fllmc.passes.recompute_policy import Policy
from fllmc.passes.runner import run_pipeline
from fllmc.passes.stages.directives import asked_pipeline
from fllmc.passes.stages.keep import Within
from fllmc.stage_fitting import StageTrial

ROUNDS = 8
"""Layouts that are tried before as little is kept as can be."""


def within_budget(
    spec: Spec, mesh: Mesh, target: str
) -> tuple[Recompute | Within | None, tuple[Decision, ...]]:
    """What keeps within the schedule's budget, and what it decided; None without one.

    It is a pass, or for the stages of a pipeline what each keeps.

    Raises DiagnosticError with BudgetUnmet if no choice fits.
    """
    if not spec.schedule.budget_gib:
        return None, ()
    trial = trial_of(spec, mesh, target)
    if isinstance(trial, StageTrial):
        choices = trial.fitting()
        if choices is not None:
            return trial.keeping(choices), tuple(trial.decisions(choices))
    else:
        found = trial.fitting()
        if found is not None:
            return found, tuple(trial.decisions(found))
    raise DiagnosticError(unmet(trial, tuple(ways_out(spec, mesh, target))))


def trial_of(spec: Spec, mesh: Mesh, target: str) -> Trial | StageTrial:
    """Plans of a spec that keep more or less."""
    asked = asked_pipeline(spec.schedule, spec.program, mesh)
    if asked is None:
        return Trial(spec, mesh, target)
    known = load_target(target or "cpu")
    return StageTrial(spec, mesh, asked, known, overlapping(spec, target))


def unmet(trial: Trial | StageTrial, ways: tuple[str, ...]) -> BudgetUnmet:
    """Why nothing fits."""
    needed, kept = trial.at_least()
    return BudgetUnmet(
        NOWHERE,
        least=bytes_text(needed),
        budget=bytes_text(trial.total),
        over=bytes_text(needed - trial.total),
        kept=bytes_text(kept),
        ways=ways,
    )


def fit(
    spec: Spec, mesh: Mesh, target: str
) -> tuple[Recompute | Within | None, Overlap | None, tuple[Decision, ...]]:
    """The passes that keep within the schedule's budget, and that let transfers run beside others.

    The second is left out where its buffers do not fit, or cost more recomputing than it hides.
    Raises DiagnosticError with BudgetUnmet if nothing fits.
    """
    plain = structs.replace(spec, schedule=structs.replace(spec.schedule, overlap="off"))
    beside = overlapping(spec, target)
    if beside is None or not spec.schedule.budget_gib:
        within, told = within_budget(spec, mesh, target)
        return within, beside, told
    if asked_pipeline(spec.schedule, spec.program, mesh) is not None:
        return fit_stages(spec, plain, mesh, target)
    bare = Trial(plain, mesh, target)
    without = bare.fitting()
    if without is None:
        raise DiagnosticError(unmet(bare, tuple(ways_out(plain, mesh, target))))
    trial = Trial(spec, mesh, target)
    found = trial.fitting()
    if found is None:
        over = trial.arena(trial.whole.least) - trial.total
        against = f"its buffers need {bytes_text(over)} more than a rank has"
    else:
        against = trial.slower(found, bare, without)
    if found is not None and not against:
        return found, beside, tuple(trial.decisions(found))
    off = Decision("transfers", "each is done in its order", against, "beside computation")
    return without, None, (*bare.decisions(without), off)


def fit_stages(
    spec: Spec, plain: Spec, mesh: Mesh, target: str
) -> tuple[Within, Overlap | None, tuple[Decision, ...]]:
    """The same for the stages of a pipeline: without overlap where its buffers do not fit."""
    for one in (spec, plain):
        trial = trial_of(one, mesh, target)
        choices = trial.fitting() if isinstance(trial, StageTrial) else None
        if isinstance(trial, StageTrial) and choices is not None:
            told = tuple(trial.decisions(choices))
            if one is plain:
                against = "its buffers need more than a rank has"
                told += (Decision("transfers", "each is done in its order", against),)
            return trial.keeping(choices), overlapping(one, target), told
    found = unmet(trial_of(plain, mesh, target), tuple(ways_out(plain, mesh, target)))
    raise DiagnosticError(found)


def overlapping(spec: Spec, target: str) -> Overlap | None:
    """The pass that lets transfers run beside computation, unless the schedule forbids it."""
    if spec.schedule.overlap == "off":
        return None
    return Overlap(target=load_target(target or "cpu"))


def ways_out(spec: Spec, mesh: Mesh, target: str) -> Iterator[str]:
    """Changes of the schedule with which a plan fits."""
    now = spec.schedule
    batch = spec.program.sizes.size("batch")
    more = (now.microbatches * 2**n for n in range(1, 7))
    tried = [
        [("microbatches", count) for count in more if batch % count == 0],
        [("loss_chunks", count) for count in (4, 16) if now.loss_chunks == 1],
    ]
    for changes in tried:
        for field, value in changes:
            changed = structs.replace(spec, schedule=structs.replace(now, **{field: value}))
            try:
                trial = trial_of(changed, mesh, target)
                fits = trial.at_least()[0] <= trial.total
            except DiagnosticError:
                break
            if fits:
                yield f"{field}: {value}"
                break


class Trial:
    """A spec's program once it is placed, and plans of it under budgets of kept bytes."""

    def __init__(self, spec: Spec, mesh: Mesh, target: str) -> None:
        self.cx = Context(mesh, lambda found: None)
        self.total = int(spec.schedule.budget_gib * 2**30)
        self.target = load_target(target or "cpu")
        self.spec = spec
        passes = standard_pipeline(spec, self.keeping(0), overlapping(spec, target))
        at = passes.index(self.keeping(0))
        self.before = run_pipeline(spec.program, passes[:at], self.cx, lambda: 0.0)[0]
        self.after = passes[at + 1 :]
        own = self.keeping(0)
        room = Room(0, 1, self.target, own.host, own.offload, own.beside)
        policy = Policy(spec.schedule.recompute, cheap=False)
        self.whole: Whole = everything(self.before, policy, room)

    def keeping(self, budget: int) -> Recompute:
        """The pass for a budget of kept bytes."""
        schedule = self.spec.schedule
        return Recompute(
            schedule.recompute,
            cheap=False,
            budget=budget,
            host=schedule.host_bytes(self.target),
            offload=schedule.offload,
            beside=schedule.overlap == "on",
            target=self.target,
        )

    def arena(self, budget: int) -> int:
        """Bytes of a rank when so many are kept."""
        return derived_all([self.planned(budget)])[0].arena_bytes

    def planned(self, budget: int) -> Program:
        """The program at plan level when so many are kept."""
        return self.run(self.before, (self.keeping(budget), *self.after))

    def run(self, program: Program, passes: Sequence[Pass]) -> Program:
        """The program after these passes."""
        return run_pipeline(program, passes, self.cx, lambda: 0.0)[0]

    def at_least(self) -> tuple[int, int]:
        """Bytes of a rank when as little is kept as can be, and how many of them are kept."""
        return self.arena(self.whole.least), self.whole.least

    def fitting(self) -> Recompute | None:
        """The pass with the largest budget found with which the plan fits."""
        budget = self.whole.choose(sum(c or 0 for c in self.whole.instance.costs)).bytes
        for _ in range(ROUNDS):
            over = self.arena(budget) - self.total
            if over <= 0:
                return self.keeping(budget)
            if budget - over <= self.whole.least:
                break
            budget = self.whole.choose(budget - over).bytes
        return self.keeping(self.whole.least) if self.at_least()[0] <= self.total else None

    def slower(self, found: Recompute, other: Trial, without: Recompute) -> str:
        """Why the other trial's step takes less time than this one's; empty if it does not."""
        mine, theirs = (
            trial.spec.schedule.microbatches * trial.whole.choose(chosen.budget).seconds
            for trial, chosen in ((self, found), (other, without))
        )
        if mine <= theirs:
            return ""
        exposed, bare = (
            exposure(trial.planned(chosen.budget), "train", self.target).exposed
            for trial, chosen in ((self, found), (other, without))
        )
        if mine - theirs <= bare - exposed:
            return ""
        more, less = seconds_text(mine - theirs), seconds_text(bare - exposed)
        return f"the memory of its buffers spares {more} of recomputing, it would hide {less}"

    def decisions(self, found: Recompute) -> Iterator[Decision]:
        """What was chosen, how good it is, and what was not chosen; then value by value."""
        choice: Choice = self.whole.choose(found.budget)
        least = self.whole.choose(self.whole.least)
        proof = "no choice is faster"
        if choice.gap > 1e-6:
            proof = f"no choice is more than {100 * choice.gap:.1f} % faster"
        away = f", {bytes_text(choice.host_bytes)} in host memory" if choice.host_bytes else ""
        yield Decision(
            "what is kept",
            f"{bytes_text(choice.bytes)}{away}, and {seconds_text(choice.seconds)} of "
            f"{'copies and ' if away else ''}recomputing",
            f"a rank has {bytes_text(self.total)}, and {proof} on {self.target.name}",
            f"keeping {bytes_text(least.bytes)}: {seconds_text(least.seconds)} of recomputing",
        )
        stacks = range(len(self.whole.parts))
        yield from value_decisions(self.before, self.whole, choice.held, found.budget, stacks)


def check_host(plan: Plan, schedule: Schedule) -> None:
    """DiagnosticError where more waits in host memory than the schedule allows."""
    needed = max(stage.host_bytes for stage in plan.by_stage)
    allowed = schedule.host_gib
    if allowed is not None and needed > int(allowed * 2**30):
        texts = bytes_text(needed), bytes_text(allowed * 2**30)
        raise DiagnosticError(HostTooSmall(NOWHERE, *texts))
