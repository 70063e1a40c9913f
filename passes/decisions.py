"""What was decided, and why, in words: for the plan, `fllmc inspect` and the report."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fllmc.ir.ops import Quantize, Scan, ToHost
from fllmc.ir.plan import Decision
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.select import selects, within
from fllmc.ir.settings import Schedule
from fllmc.passes.context_decisions import attentions
from fllmc.passes.expert_decisions import exchanges
from fllmc.passes.place import summary
from fllmc.passes.quantize_decisions import quantized


def decisions(
    program: Program, schedule: Schedule, told: Collection[Decision] = ()
) -> tuple[Decision, ...]:
    """The decisions behind a placed program: of parameters, attention and experts, then of what
    is kept, but for what is `told` otherwise."""
    known = {each.subject for each in told}
    return (
        *placements(program, schedule),
        *quantized(program),
        *attentions(program, schedule),
        *exchanges(program),
        *(each for each in kept(program, schedule) if each.subject not in known),
        *rounded(program, schedule),
    )


def rounded(program: Program, schedule: Schedule) -> Iterator[Decision]:
    """That numbers change, where kept values are rounded."""
    if any(isinstance(op.attrs, Quantize) for f in program.functions for op in f.ops):
        for directive in schedule.compress:
            yield Decision(
                f"compress {directive.selector}",
                "gradients are not exact: the backward pass reads kept values in 8 bits",
                "the schedule asks; an element is off by 1/254 of its block's largest at most",
                "keeping all bits",
            )


def placements(program: Program, schedule: Schedule) -> Iterator[Decision]:
    """Where each parameter is stored."""
    sizes = program.sizes
    for found in summary.decisions(program, schedule.shards, schedule.zero):
        choice = f"stored as `{found.stored}`"
        if found.compute != found.stored:
            choice += f", gathered to `{found.compute}` {found.often}"
        because = [f"`{r.directive}` puts {r.dim} on {r.axis}" for r in found.reasons]
        more = sizes.local_bytes(found.stored.unplaced()) - sizes.local_bytes(found.stored)
        rejected = f"a whole copy on every rank: {bytes_text(more)} more" if more else ""
        because += [found.left_whole] if found.left_whole else []
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
        yield from kept_in(program, program.function(name), schedule)


def kept_in(program: Program, function: Function, schedule: Schedule) -> Iterator[Decision]:
    """What the scans of a function, and those inside them, keep."""
    scans = [(op, op.attrs) for op in function.ops if isinstance(op.attrs, Scan)]
    back = {attrs.over for _, attrs in scans if attrs.reverse}
    for op, attrs in scans:
        yield from kept_in(program, program.function(attrs.function), schedule)
        if attrs.over in back and not attrs.reverse:
            yield from kept_by(program, op, attrs, schedule)


def kept_by(program: Program, op: Op, attrs: Scan, schedule: Schedule) -> Iterator[Decision]:
    """What one forward scan keeps."""
    body = program.function(attrs.function)
    sizes, turns = program.sizes, program.sizes.size(attrs.over)
    coded = {
        v: inner.attrs
        for inner in body.ops
        if isinstance(inner.attrs, Quantize)
        for v in inner.results
    }
    hosted = {v: o.operands[0] for o in body.ops if isinstance(o.attrs, ToHost) for v in o.results}
    away = {v for inner in body.ops if isinstance(inner.attrs, ToHost) for v in inner.results}
    for value in body.results[attrs.carries :]:
        path, kind = source_of(body, value), body.types[value]
        size = sizes.local_bytes(kind) * turns
        where = " in host memory" if value in away else ""
        if (found := coded.get(hosted.get(value, value))) is not None:
            count = sizes.size(found.blocks)
            where += f" in 8 bits, {sizes.size(found.dim) // count} of {found.dim} to a scale"
        full = within(op.path, "*", path) if path else f"{op.path}.* ({own(body, value)})"
        yield Decision(
            full,
            f"kept for the backward pass{where}: `{kind}` for each of {turns} {attrs.over}",
            kept_reason(within(op.path, "0", path), path, schedule),
            f"computing it again: {bytes_text(size)} less",
        )


def kept_reason(full: str, path: str, schedule: Schedule) -> str:
    """Why a value is kept."""
    for directive in schedule.recompute:
        if selects(directive.selector, full):
            if any(selects(keep, path) for keep in directive.keep):
                return f"`recompute {directive.selector}` names it under `keep`"
            return f"`recompute {directive.selector}` starts again from it"
    if schedule.budget_gib:
        return "within the budget, keeping it saves more time than keeping others"
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
