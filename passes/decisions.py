"""What was decided, and why, in words: for the plan, `fllmc inspect` and the report."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.ops import Scan
from fllmc.ir.plan import Decision
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.select import selects
from fllmc.ir.settings import Schedule
from fllmc.passes.context_decisions import attentions
from fllmc.passes.place import summary


def decisions(program: Program, schedule: Schedule) -> tuple[Decision, ...]:
    """The decisions behind a placed program: of parameters, of attention, then of what is kept."""
    return (
        *placements(program, schedule),
        *attentions(program, schedule),
        *kept(program, schedule),
    )


def placements(program: Program, schedule: Schedule) -> Iterator[Decision]:
    """Where each parameter is stored."""
    sizes = program.sizes
    for found in summary.decisions(program, schedule.shards):
        choice = f"stored as `{found.stored}`"
        if found.compute != found.stored:
            choice += f", gathered to `{found.compute}` where it is used"
        because = [f"`{r.directive}` puts {r.dim} on {r.axis}" for r in found.reasons]
        more = sizes.local_bytes(found.stored.unplaced()) - sizes.local_bytes(found.stored)
        rejected = f"a whole copy on every rank: {bytes_text(more)} more" if more else ""
        reason = "; ".join(dict.fromkeys(because)) or whole_reason(program)
        yield Decision(found.parameter, choice, reason, rejected)


def whole_reason(program: Program) -> str:
    """Why a parameter is not divided."""
    if program.mesh.size == 1:
        return "there is one device"
    return "no `shard` directive speaks of its dims, so every rank holds a copy"


def kept(program: Program, schedule: Schedule) -> Iterator[Decision]:
    """What each stack's forward pass keeps for the backward pass, of each function once."""
    for name in program.entries:
        for op in program.function(name).ops:
            yield from kept_by(program, op, schedule)


def kept_by(program: Program, op: Op, schedule: Schedule) -> Iterator[Decision]:
    """What one scan, and the scans inside it, keep."""
    if not isinstance(op.attrs, Scan):
        return
    body = program.function(op.attrs.function)
    for inner in body.ops:
        yield from kept_by(program, inner, schedule)
    if op.attrs.reverse or op.attrs.over == "microbatches":
        return
    sizes, turns = program.sizes, program.sizes.size(op.attrs.over)
    for value in body.results[op.attrs.carries :]:
        path, kind = source_of(body, value), body.types[value]
        size = sizes.local_bytes(kind) * turns
        full = f"{op.path}.*.{path}" if path else f"{op.path}.* ({own(body, value)})"
        yield Decision(
            full,
            f"kept for the backward pass: `{kind}` for each of {turns} {op.attrs.over}",
            kept_reason(f"{op.path}.0.{path}", path, schedule),
            f"computing it again: {bytes_text(size)} less",
        )


def kept_reason(full: str, path: str, schedule: Schedule) -> str:
    """Why a value is kept."""
    for directive in schedule.recompute:
        if selects(directive.selector, full):
            if any(selects(keep, path) for keep in directive.keep):
                return f"`recompute {directive.selector}` names it under `keep`"
            return f"`recompute {directive.selector}` starts again from it"
    return "of all ways to give the backward pass what it reads, this one keeps fewest bytes"


def own(body: Function, value: int) -> str:
    """What a value without a path of its own is to the block."""
    return "its input" if value < len(body.inputs) else "a value of its own equations"


def source_of(body: Function, value: int) -> str:
    """The path of the op that makes a value; empty for an input."""
    for op in body.ops:
        if value in op.results:
            return op.path
    return ""
