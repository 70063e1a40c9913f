"""Keep what saves most time under a budget of bytes, over all stacks of a program together.

Any op of a stack may be run again, at the time that a roofline gives it, unless a directive names
it under `keep`; what a directive selects otherwise is not kept. Bytes are those of one rank, for
all layers, and for each micro-batch that is in flight.
"""

from __future__ import annotations

import msgspec

from fllmc.ir.program import Program
from fllmc.ir.target import Target
from fllmc.ir.walk import host_values
from fllmc.passes.budget_choice import (
    Choice,
    Instance,
    Step,
    bytes_of,
    choose,
    fewest_bytes,
)
from fllmc.passes.recompute_policy import Place, Policy, all_places, never_kept
from fllmc.passes.recompute_rewrite import rewritten
from fllmc.passes.recompute_stacks import (
    Stack,
    decision_of,
    keeping_costs,
    residuals,
    scan_of,
    stacks,
)
from fllmc.passes.roofline import op_seconds


class Room(msgspec.Struct, frozen=True):
    """Bytes for what a rank keeps, the micro-batches that are kept at once, and the device."""

    budget: int
    in_flight: int
    target: Target


class Part(msgspec.Struct, frozen=True):
    """One stack of a function, and where its values begin among those of all stacks."""

    function: str
    stack: Stack
    first: int


class Whole(msgspec.Struct, frozen=True):
    """All stacks as one instance."""

    parts: tuple[Part, ...]
    instance: Instance

    @property
    def least(self) -> int:
        """The fewest bytes that can be kept."""
        return bytes_of(self.instance, fewest_bytes(self.instance))

    def choose(self, budget: int) -> Choice:
        """The fastest choice within a budget that is no less than the fewest bytes."""
        if not self.parts:
            return Choice((), 0, 0.0, 0.0)
        return choose(self.instance, budget)


def everything(program: Program, policy: Policy, room: Room) -> Whole:
    """What can be kept and run again in all stacks that have none inside."""
    parts: list[Part] = []
    costs: list[int | None] = []
    steps: list[Step] = []
    wanted: list[int] = []
    for name, places in all_places(program).items():
        function = program.function(name)
        for stack in stacks(function):
            body = program.function(scan_of(function.ops[stack.forward]).function)
            if stacks(body):
                continue
            first = len(costs)
            found = instance_of(program, name, stack, policy, places[0], room)
            parts.append(Part(name, stack, first))
            costs += found.costs
            steps += [moved(step, first) for step in found.steps]
            wanted += [first + value for value in found.wanted]
    return Whole(tuple(parts), Instance(tuple(costs), tuple(steps), tuple(wanted)))


def moved(step: Step, by: int) -> Step:
    """The step with its values' numbers moved."""
    operands, results = (tuple(v + by for v in given) for given in (step.operands, step.results))
    return Step(operands, results, step.seconds)


def instance_of(
    program: Program, name: str, stack: Stack, policy: Policy, place: Place, room: Room
) -> Instance:
    """One stack: its forward body's values and ops."""
    function = program.function(name)
    op = function.ops[stack.forward]
    scan, inside = scan_of(op), place.inside(op)
    body, turns = program.function(scan.function), program.sizes.size(scan.over)
    costs = keeping_costs(function, stack, program, body)
    always = host_values(body) | never_kept(body)
    steps: list[Step] = []
    for inner in body.ops:
        selected = policy.selected(inner, inside)
        if selected:
            costs.update(dict.fromkeys(inner.results))
        if selected or not policy.named(inner, inside) or always.issuperset(inner.results):
            seconds = turns * op_seconds(program, body, inner, room.target)
            steps.append(Step(inner.operands, inner.results, seconds))
    inputs = range(scan.carries, len(body.inputs))
    found = [costs[value] for value in range(len(body.types))]
    return Instance(
        tuple(
            cost if cost is None or value in inputs else cost * room.in_flight
            for value, cost in enumerate(found)
        ),
        tuple(steps),
        tuple(sorted({body.results[at] for at in stack.moved.values()})),
    )


def kept_within(program: Program, policy: Policy, room: Room) -> Program:
    """The program with the choice made; the fewest bytes where the budget is less than these."""
    whole = everything(program, policy, room)
    kept = whole.choose(max(room.budget, whole.least)).kept if whole.parts else ()
    bounds = [*(part.first for part in whole.parts), len(whole.instance.costs)]
    for part, stop in zip(whole.parts, bounds[1:], strict=True):
        function = program.function(part.function)
        now = residuals(function, part.stack.forward, part.stack.backward)
        scan = scan_of(function.ops[part.stack.forward])
        mine = {value - part.first for value in kept if part.first <= value < stop}
        decision = decision_of(mine, scan, program.function(scan.function))
        if not decision.keeps_all(function, now, program):
            program = rewritten(function, now, decision, program)
    return program
