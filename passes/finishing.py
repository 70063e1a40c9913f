"""From the sharded program to the plan level: as it is, or cut into the stages of a pipeline."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.settings import Spec
from fllmc.ir.target import Target
from fllmc.ir.text import print_program
from fllmc.ir.timetable import Timed
from fllmc.passes.base import Context
from fllmc.passes.overlap import Overlap
from fllmc.passes.pipeline import cut_pipeline, standard_pipeline
from fllmc.passes.recompute import Recompute
from fllmc.passes.runner import Dump, Timing, run_pipeline
from fllmc.passes.stages.alike import like, outline
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.decisions import stage_decisions
from fllmc.passes.stages.directives import asked_pipeline, missing_axis
from fllmc.passes.stages.keep import Within

CUT = "cut-stages"


class Finished(msgspec.Struct, frozen=True):
    """A program at plan level for each position of the `pipe` axis, or the one there is without.

    `sharded` is the whole program before it was cut, `timeline` the work of a training step as the
    simulation has it.
    """

    sharded: Program
    programs: tuple[Program, ...]
    pipe: str
    timings: tuple[Timing, ...]
    decisions: tuple[Decision, ...] = ()
    timeline: tuple[Timed, ...] = ()

    def text(self) -> str:
        """The programs as text, each of those that are alike once."""
        if not self.pipe:
            return print_program(self.programs[0])
        shown = {outline(p): (at, p) for at, p in reversed(list(enumerate(self.programs)))}
        return "\n".join(
            f"// {self.pipe} {at}\n{print_program(program)}"
            for at, program in sorted(shown.values(), key=lambda pair: pair[0])
        )


def finish(
    spec: Spec,
    cx: Context,
    clock: Callable[[], float],
    keep: Dump,
    target: Target,
    within: Recompute | Within | None = None,
    beside: Overlap | None = None,
) -> Finished:
    """All passes over a spec's program; stages are weighed by times on the target.

    `within` keeps within a budget, if there is one; `beside` lets transfers run beside computation.
    DiagnosticError with what is wrong.
    """
    asked = asked_pipeline(spec.schedule, spec.program, cx.mesh)
    missing = missing_axis(spec.schedule, spec.program, cx.mesh)
    if missing is not None:
        cx.report(missing)
    passes = standard_pipeline(spec, within, beside)
    first, then = cut_pipeline(passes)
    if asked is None:
        placed: list[Program] = []

        def keep_whole(number: int, name: str, program: Program) -> None:
            placed.extend([program] if name != Overlap.name else [])
            keep(number, name, program)

        program, timings = run_pipeline(spec.program, passes, cx, clock, keep_whole)
        return Finished(placed[-1], (program,), "", timings)
    program, timings = run_pipeline(spec.program, first, cx, clock, keep)
    begin = clock()
    own = within if isinstance(within, Within) else None
    cut = stage_programs(program, asked, spec.schedule.microbatches, target, own)
    took = clock() - begin
    done: dict[bytes, Program] = {}

    def keep_stage(number: int, name: str, program: Program) -> None:
        keep(len(first) + 1 + number, name if number else CUT, program)

    for stage in cut.programs:
        if outline(stage) not in done:
            done[outline(stage)], found = run_pipeline(stage, then, cx, clock, keep_stage)
            timings += (Timing(CUT, took, 0.0), *found)
            took = 0.0
    ends = tuple(like(done[outline(stage)], stage) for stage in cut.programs)
    reasons = tuple(stage_decisions(cut, asked, target))
    return Finished(program, ends, asked.axis, timings, reasons, cut.timeline)
