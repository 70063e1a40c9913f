"""How much of what a rank moves runs beside computation, by the times of a roofline.

One transfer is under way at a time, in the order in which they are started; what is waited for
before it is through leaves the rank idle, and so does what is not started ahead. A stack's turns
take turns with what runs beside them: per turn as much is exposed as its computation is too short.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fllmc.ir.ops import COLLECTIVES, STARTABLE, Pipeline, Scan, Wait
from fllmc.ir.plan import Decision
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.quantities import bytes_text, seconds_text
from fllmc.ir.target import Target
from fllmc.ir.walk import calls_of, waits
from fllmc.passes.roofline import times


class Exposure(msgspec.Struct, frozen=True):
    """Seconds of computing, of all transfers, and of those during which nothing is computed."""

    work: float = 0.0
    moved: float = 0.0
    exposed: float = 0.0

    def plus(self, other: Exposure, count: int = 1) -> Exposure:
        """This, and the other so many times."""
        return Exposure(
            self.work + count * other.work,
            self.moved + count * other.moved,
            self.exposed + count * other.exposed,
        )


def exposure(program: Program, name: str, target: Target) -> Exposure:
    """The exposure of one run of a function."""
    function = program.function(name)
    seconds = times(program, function, target)
    waited = waits(function)
    begun = set(waited.values())
    total, now, link = Exposure(), 0.0, 0.0
    through: dict[int, float] = {}
    for at, op in enumerate(function.ops):
        inner = turns(program, op, target)
        if isinstance(op.attrs, Wait):
            idle = max(0.0, through.get(waited[at], 0.0) - now)
            total, now = total.plus(Exposure(exposed=idle)), now + idle
        elif at in begun:
            link = max(link, now) + seconds[at]
            through[at] = link
            total = total.plus(Exposure(moved=seconds[at]))
        elif isinstance(op.attrs, (*STARTABLE, *COLLECTIVES)):
            idle = max(link, now) + seconds[at] - now
            total = total.plus(Exposure(moved=seconds[at], exposed=idle))
            link = now = now + idle
        else:
            total = total.plus(inner or Exposure(work=seconds[at]))
            now += (inner.work + inner.exposed) if inner else seconds[at]
    return total


def turns(program: Program, op: Op, target: Target) -> Exposure | None:
    """The exposure of all that an op runs, if it runs functions with transfers in them."""
    if isinstance(op.attrs, Scan) and (op.attrs.ahead or op.attrs.behind):
        return beside(program, op.attrs, target)
    found = Exposure()
    for name, count in calls_of(op, program.sizes):
        found = found.plus(exposure(program, name, target), count)
    return found if found.moved else None


def beside(program: Program, attrs: Scan, target: Target) -> Exposure:
    """The exposure of a stack whose turns are cut: nothing hides the first and the last side."""
    count = program.sizes.size(attrs.over) - bool(attrs.final)
    middle = exposure(program, attrs.function, target)
    sides = [
        exposure(program, name, target) if name else Exposure()
        for name in (attrs.ahead, attrs.behind)
    ]
    work = sum(side.work for side in sides)
    moved = sum(side.moved for side in sides)
    short = max(0.0, moved - middle.work - work)
    found = Exposure().plus(middle, count)
    found = found.plus(Exposure(work, moved, short), count)
    found = found.plus(Exposure(exposed=moved - short))
    return found.plus(exposure(program, attrs.final, target)) if attrs.final else found


def transfer_decisions(program: Program, target: Target, limit: int) -> Iterator[Decision]:
    """What of a training step's transfers runs beside what; nothing where nothing moves."""
    entry = "train" if "train" in program.entries else program.entries[0]
    found = exposure(program, entry, target)
    if not found.moved:
        return
    hidden = found.moved - found.exposed
    where = of_stage(program, entry)
    yield Decision(
        f"transfers{where}",
        f"{seconds_text(hidden)} of {seconds_text(found.moved)} run beside computation, "
        f"{seconds_text(found.exposed)} do not",
        f"each is started when its operands are there, on {target.name}, "
        f"with no more than {bytes_text(limit)} in flight",
        f"each in its order: {seconds_text(found.moved)} beside which nothing is computed",
    )
    for function in reached(program, entry):
        for op in function.ops:
            if isinstance(op.attrs, Scan):
                yield from stack_decisions(program, op, op.attrs, target, where)


def of_stage(program: Program, entry: str) -> str:
    """Which stage of a pipeline the program is of, if it is of one."""
    found = [op.attrs for op in program.function(entry).ops if isinstance(op.attrs, Pipeline)]
    return f" of {found[0].axis} {found[0].rank}" if found else ""


def stack_decisions(
    program: Program, op: Op, attrs: Scan, target: Target, where: str
) -> Iterator[Decision]:
    """What runs beside the turns of a stack, and how long a turn is."""
    work = exposure(program, attrs.function, target).work
    for name, what, when in (
        (attrs.ahead, "gathered or fetched", "the one before it"),
        (attrs.behind, "scattered, summed or put away", "the next one"),
    ):
        if name:
            moved = exposure(program, name, target).moved
            yield Decision(
                f"{op.path or attrs.function} ({name}){where}",
                f"{what} for one of {attrs.over} beside {when}",
                f"it takes {seconds_text(moved)}, {attrs.function} computes {seconds_text(work)}",
                f"in its own turn: {bytes_text(passing_bytes(program, attrs, name))} less memory",
            )


def passing_bytes(program: Program, attrs: Scan, name: str) -> int:
    """Bytes of the second buffers of what passes between a turn and its side."""
    function = program.function(name)
    kinds = function.signature.results
    if name == attrs.behind:
        kinds = function.signature.inputs[: attrs.handed]
    return sum(program.sizes.local_bytes(kind) for kind in kinds)


def reached(program: Program, entry: str) -> list[Function]:
    """The functions that an entry runs, each once."""
    found: dict[str, Function] = {}
    todo = [entry]
    while todo:
        name = todo.pop(0)
        if name not in found:
            found[name] = program.function(name)
            runs = (calls_of(op, program.sizes) for op in found[name].ops)
            todo += [callee for calls in runs for callee, _ in calls]
    return list(found.values())
