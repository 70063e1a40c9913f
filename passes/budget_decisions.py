"""What of a stack is kept, waits in host memory or is computed again under a budget, in words."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text, seconds_text
from fllmc.passes.budget_choice import Held, Instance, bytes_of, host_bytes_of, seconds_of
from fllmc.passes.decisions import own, source_of
from fllmc.passes.recompute_budget import Part, Whole
from fllmc.passes.recompute_stacks import scan_of

KEPT, AWAY, AGAIN = "keeping it on the device", "in host memory", "computing it again"


def value_decisions(
    program: Program, whole: Whole, held: Held, budget: int, stacks: Collection[int]
) -> Iterator[Decision]:
    """One for each value that takes bytes or that the backward pass reads and is made again.

    They are of those of the stacks that the program has, by number.
    """
    instance = whole.instance
    for number in stacks:
        part = whole.parts[number]
        mine = whole.own(number, held)
        wanted = [v - part.first for v in instance.wanted if v >= part.first]
        size = len(body_types(program, part))
        again = {v for v in wanted if v < size} - mine.all
        for value in sorted(mine.all | again):
            cost = instance.costs[part.first + value]
            if cost != 0 and not (value in again and cost is None):
                yield decision_for(program, whole, part, value, held, budget)


def body_types(program: Program, part: Part) -> tuple[object, ...]:
    """The types of a stack's forward body."""
    scan = scan_of(program.function(part.function).ops[part.stack.forward])
    return program.function(scan.function).types


def decision_for(
    program: Program, whole: Whole, part: Part, value: int, held: Held, budget: int
) -> Decision:
    """What was chosen for one value of a stack, what that takes, and the best of what was not."""
    op = program.function(part.function).ops[part.stack.forward]
    scan = scan_of(op)
    body, turns = program.function(scan.function), program.sizes.size(scan.over)
    path, kind = source_of(body, value), body.types[value]
    instance, number = whole.instance, part.first + value
    forms = f"`{kind}` for each of {turns} {scan.over}"
    if number in held.kept:
        choice = f"kept for the backward pass: {forms}, {bytes_text(instance.costs[number] or 0)}"
        why, now = "within the budget, keeping it saves more time than keeping others", KEPT
    elif number in held.away:
        away = instance.waits[number]
        choice = f"kept for the backward pass in host memory: {forms}, {bytes_text(away.bytes)}"
        why, now = f"its copies there and back take {seconds_text(away.seconds)}", AWAY
        why += ", beside the layers' work" if instance.windows else ""
    else:
        more = seconds_of(instance, held) - seconds_of(instance, having(held, number, KEPT))
        choice = f"computed again in the backward pass: {forms}"
        why, now = f"with what else leads to it that takes {seconds_text(more)}", AGAIN
    return Decision(
        f"{op.path}.*.{path}" if path else f"{op.path}.* ({own(body, value)})",
        choice,
        why,
        best_other(instance, held, number, now, budget),
    )


def having(held: Held, value: int, where: str) -> Held:
    """What is held, with one value elsewhere."""
    kept, away = held.kept - {value}, held.away - {value}
    return Held(
        kept | {value} if where == KEPT else kept, away | {value} if where == AWAY else away
    )


def best_other(instance: Instance, held: Held, value: int, now: str, budget: int) -> str:
    """The fastest of the other ways to have a value, those that fit first, and what it takes."""
    found: list[tuple[bool, float, str]] = []
    before = seconds_of(instance, held)
    for where in (KEPT, AWAY, AGAIN):
        cannot = (where == KEPT and instance.costs[value] is None) or (
            where == AWAY and value not in instance.waits
        )
        if where == now or cannot:
            continue
        other = having(held, value, where)
        try:
            more = seconds_of(instance, other) - before
        except KeyError:
            continue
        over = bytes_of(instance, other) - budget
        host_over = host_bytes_of(instance, other) - instance.host
        text = f"{where}: {seconds_text(abs(more))} {'more' if more >= 0 else 'less'}"
        text += f", but {bytes_text(over)} too much is kept then" if over > 0 else ""
        text += f", but {bytes_text(host_over)} too much on the host" if host_over > 0 else ""
        found.append((over > 0 or host_over > 0, more, text))
    return min(found)[2] if found else "it can be had in no other way"
