"""Keep what saves most time under a budget of bytes, over all stacks of a program together.

Any op of a stack may be run again, at the time that a roofline gives it, unless a directive names
it under `keep`; what a directive selects otherwise is not kept. What a stack makes may wait in host
memory instead, at the time of its copies, less what they run beside; what `offload` directives
select does if it is kept at all. Bytes are those of one rank, for all layers, and for each
micro-batch that is in flight.
"""

from __future__ import annotations

import msgspec

from fllmc.ir.plan import ALIGNMENT
from fllmc.ir.program import Function, Program
from fllmc.ir.settings import Offload
from fllmc.ir.target import Target
from fllmc.ir.walk import host_values
from fllmc.passes.budget_choice import (
    Away,
    Choice,
    Held,
    Instance,
    Step,
    Window,
    bytes_of,
    choose,
    fewest_bytes,
    moved,
)
from fllmc.passes.offload import offloaded, rules_for
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
from fllmc.passes.roofline import function_seconds, op_seconds


class Room(msgspec.Struct, frozen=True):
    """Bytes for what a rank keeps, and the device.

    `in_flight` micro-batches are kept at once. `host` are the bytes of host memory in which values
    may wait, as those must that `offload` selects.
    """

    budget: int
    in_flight: int
    target: Target
    host: int = 0
    offload: tuple[Offload, ...] = ()
    beside: bool = False


class Part(msgspec.Struct, frozen=True):
    """One stack of a function, where it runs, and where its values begin among all stacks'."""

    function: str
    stack: Stack
    inside: Place
    first: int


class Whole(msgspec.Struct, frozen=True):
    """All stacks as one instance."""

    parts: tuple[Part, ...]
    instance: Instance

    @property
    def least(self) -> int:
        """The fewest bytes that can be kept on the device."""
        return bytes_of(self.instance, fewest_bytes(self.instance))

    def choose(self, budget: int) -> Choice:
        """The fastest choice within a budget that is no less than the fewest bytes."""
        if not self.parts:
            return Choice((), (), 0, 0, 0.0, 0.0)
        return choose(self.instance, budget)

    def own(self, number: int, held: Held) -> Held:
        """What is held of the values of one stack, by their numbers in its body."""
        first = self.parts[number].first
        later = [part.first for part in self.parts[number + 1 :]]
        numbers = range(first, min(later, default=len(self.instance.costs)))
        kept, away = (
            frozenset(v - first for v in values if v in numbers)
            for values in (held.kept, held.away)
        )
        return Held(kept, away)


def everything(program: Program, policy: Policy, room: Room) -> Whole:
    """What can be kept and run again in all stacks that have none inside."""
    parts: list[Part] = []
    whole = Instance((), (), (), (), room.host)
    for name, places in all_places(program).items():
        function = program.function(name)
        for stack in stacks(function):
            op = function.ops[stack.forward]
            if stacks(program.function(scan_of(op).function)):
                continue
            inside = places[0].inside(op)
            parts.append(Part(name, stack, inside, len(whole.costs)))
            whole = beside(whole, instance_of(program, name, stack, policy, inside, room))
    return Whole(tuple(parts), whole)


def beside(whole: Instance, other: Instance) -> Instance:
    """Two instances as one, with the numbers of the second behind those of the first."""
    behind = moved(other, len(whole.costs))
    return Instance(
        whole.costs + behind.costs,
        whole.steps + behind.steps,
        whole.wanted + behind.wanted,
        whole.away + behind.away,
        whole.host,
        whole.windows + behind.windows,
    )


def instance_of(
    program: Program, name: str, stack: Stack, policy: Policy, inside: Place, room: Room
) -> Instance:
    """One stack: its forward body's values and ops."""
    function = program.function(name)
    scan = scan_of(function.ops[stack.forward])
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
    own = [v for v in range(len(body.types)) if v not in range(scan.carries, len(body.inputs))]
    away = {v: way for v in own if costs[v] and (way := away_of(program, body, v, turns, room))}
    for value in away:
        if rules_for(body, value, inside, room.offload):
            costs[value] = None
    return Instance(
        tuple(
            cost * room.in_flight if cost and value in own else cost
            for value, cost in sorted(costs.items())
        ),
        tuple(steps),
        tuple(sorted({body.results[at] for at in stack.moved.values()})),
        tuple(away.get(value) for value in range(len(body.types))),
        windows=windows_of(program, function, stack, room) if away else (),
    )


def windows_of(
    program: Program, function: Function, stack: Stack, room: Room
) -> tuple[Window, ...]:
    """What copies out and back run beside: the forward and the backward pass of the layers."""
    if not room.beside:
        return ()
    scans = [scan_of(function.ops[at]) for at in (stack.forward, stack.backward)]
    values = len(program.function(scans[0].function).types)
    return tuple(
        Window(
            0,
            values,
            program.sizes.size(scan.over)
            * function_seconds(program, program.function(scan.function), room.target),
        )
        for scan in scans
    )


def away_of(program: Program, body: Function, value: int, turns: int, room: Room) -> Away | None:
    """What a value of a forward body takes while it waits in host memory, if it can.

    It waits there for each micro-batch in flight, and is copied there and back for each alone.
    """
    kind = body.types[value]
    if not room.host or not room.target.host_gbps or kind.partial:
        return None
    size = turns * program.sizes.local_bytes(kind)
    waits = -(-size // ALIGNMENT) * ALIGNMENT * room.in_flight
    return Away(waits, 2 * size / (room.target.host_gbps * 1e9))


def kept_within(program: Program, policy: Policy, room: Room) -> Program:
    """The program with the choice made; the fewest bytes where the budget is less than these."""
    whole = everything(program, policy, room)
    if not whole.parts:
        return program
    held = whole.choose(max(room.budget, whole.least)).held
    for number, part in enumerate(whole.parts):
        program = held_by(program, part, whole.own(number, held))
    return program


def held_by(program: Program, part: Part, held: Held) -> Program:
    """The program with just these values of one stack held, where they are to be."""
    function = program.function(part.function)
    now = residuals(function, part.stack.forward, part.stack.backward)
    scan = scan_of(function.ops[part.stack.forward])
    decision = decision_of(held.all, scan, program.function(scan.function))
    if held.away or not decision.keeps_all(function, now, program):
        program = rewritten(function, now, decision, program)
    if not held.away:
        return program
    function = program.function(part.function)
    now = residuals(function, part.stack.forward, part.stack.backward)
    body = program.function(scan_of(function.ops[now.forward]).function)
    chosen = frozenset(at for at in now.moved.values() if body.results[at] in held.away)
    return offloaded(function, now, program, chosen)
