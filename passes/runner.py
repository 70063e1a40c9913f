"""Running a pipeline: levels checked, results verified, passes timed, dumps on the way.

The caller gives the clock, so nothing here reads one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.program import Level, Program
from fllmc.ir.span import NOWHERE
from fllmc.ir.text import print_program
from fllmc.ir.verify import verify
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import WrongLevel
from fllmc.passes.pipeline_text import print_pass

Dump = Callable[[int, str, Program], None]
"""Takes what a pass gave: the pass's number from 1, its name, the program. 0 is the input."""


class Timing(msgspec.Struct, frozen=True):
    """Seconds that a pass took, and those that its result took to verify."""

    name: str
    seconds: float
    verify_seconds: float


class PassFailed(InternalError):
    """A pass raised or gave an invalid program. `reproducer` is the program before it, as text.

    Its first line is a comment with the pass and its options.
    """

    def __init__(self, step: Pass, before: Program, why: BaseException) -> None:
        super().__init__(f"pass {step.name} failed: {type(why).__name__}: {why}")
        self.name = step.name
        self.reproducer = f"// passes: {print_pass(step)}\n{print_program(before)}"


def check_levels(start: Level, passes: Sequence[Pass]) -> None:
    """DiagnosticError unless each pass takes the level that the ones before it lead to."""
    level = start
    for step in passes:
        if not step.accepts(level):
            raise DiagnosticError(WrongLevel(NOWHERE, step.name, level))
        level = step.level_after(level)


def run_pipeline(
    program: Program,
    passes: Sequence[Pass],
    cx: Context,
    clock: Callable[[], float],
    dump: Dump | None = None,
) -> tuple[Program, tuple[Timing, ...]]:
    """The program after all passes, and how long each took.

    Mistakes of the user pass through as DiagnosticError; anything else that a pass raises becomes
    PassFailed.
    """
    check_levels(program.level, passes)
    timings: list[Timing] = []
    if dump is not None:
        dump(0, "input", program)
    for number, step in enumerate(passes, 1):
        program, timing = _run_one(program, step, cx, clock)
        timings.append(timing)
        if dump is not None:
            dump(number, step.name, program)
    return program, tuple(timings)


def dump_after(name: str, dump: Dump) -> Dump:
    """A dump that passes on only what the passes of that name give."""

    def chosen(number: int, step: str, program: Program) -> None:
        if step == name:
            dump(number, step, program)

    return chosen


def _run_one(
    program: Program, step: Pass, cx: Context, clock: Callable[[], float]
) -> tuple[Program, Timing]:
    start = clock()
    try:
        after = step.run(program, cx)
        done = clock()
        wanted = step.level_after(program.level)
        if after.level != wanted:
            raise InternalError(f"gave level {after.level}, not {wanted}")
        verify(after)
    except DiagnosticError:
        raise
    except Exception as error:
        raise PassFailed(step, program, error) from error
    return after, Timing(step.name, done - start, clock() - done)
