"""offload: sharded -> sharded. What is kept under a selector waits for the backward in host memory.

    offload{selectors=[{selector=body.*.mlp}]}

The forward body of a stack gives such a value by `to_host`, as soon as it is made, and the backward
body takes it by `from_host`, just before it is first used. On the device it lives in the frame of a
layer only. The numbers stay the same to the last bit. In the stages of a pipeline, which take the
two bodies as they are, it waits there for each micro-batch that is in flight.
"""

from __future__ import annotations

from typing import ClassVar, TypeVar

from fllmc.ir.build import Builder
from fllmc.ir.ops import FromHost, Rename, ToHost
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.settings import Compress
from fllmc.ir.settings import Offload as Directive
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import OffloadsNothing
from fllmc.passes.recompute_policy import Place, all_places, matches
from fllmc.passes.recompute_rewrite import emit_op
from fllmc.passes.recompute_stacks import Stack, scan_of, stacks

Selecting = TypeVar("Selecting", Directive, Compress)


class Offload(Pass, frozen=True):
    """Let kept values wait in host memory, as the directives say."""

    name: ClassVar[str] = "offload"
    takes: ClassVar[Level] = "sharded"
    gives: ClassVar[Level] = "sharded"
    keeps: ClassVar[str] = "bits"

    selectors: tuple[Directive, ...] = ()

    chosen: bool = False

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite the bodies of every stack that keeps something selected.

        With `chosen` that is done where it is chosen what each stage of a pipeline keeps.
        """
        after, done = by_directives(program, self.selectors)
        for rule in self.selectors:
            if rule not in done:
                cx.report(OffloadsNothing(rule.span, rule.selector))
        return program if self.chosen else after


def by_directives(
    program: Program, selectors: tuple[Directive, ...]
) -> tuple[Program, set[Directive]]:
    """The program with what is kept and selected in host memory, and the directives of use."""
    done: set[Directive] = set()
    for name, places in all_places(program).items() if selectors else ():
        for stack in stacks(program.function(name)):
            function = program.function(name)
            found = selected(function, stack, program, places[0], selectors)
            done.update(rule for rules in found.values() for rule in rules)
            chosen = frozenset(found) - there_already(function, stack, program)
            if chosen:
                program = offloaded(function, stack, program, chosen)
    return program, done


def selected(
    function: Function,
    stack: Stack,
    program: Program,
    place: Place,
    selectors: tuple[Selecting, ...],
) -> dict[int, list[Selecting]]:
    """The positions of the forward scan's results that are selected, and by which directives."""
    op = function.ops[stack.forward]
    body, inside = program.function(scan_of(op).function), place.inside(op)
    found = {
        at: rules_for(body, body.results[at], inside, selectors) for at in stack.moved.values()
    }
    return {at: rules for at, rules in found.items() if rules}


def rules_for(
    body: Function, value: int, inside: Place, selectors: tuple[Selecting, ...]
) -> list[Selecting]:
    """The directives that select a value of a forward body: where it was made, not renamed."""
    makers = {value: op for op in body.ops for value in op.results}
    while value in makers and isinstance(makers[value].attrs, Rename | ToHost):
        (value,) = makers[value].operands
    maker = makers.get(value, Op(ToHost(), (value,), ()))
    return [rule for rule in selectors if matches(rule.selector, maker, inside)]


def there_already(function: Function, stack: Stack, program: Program) -> frozenset[int]:
    """The positions of the forward scan's results that wait in host memory as it is."""
    body = program.function(scan_of(function.ops[stack.forward]).function)
    away = {v for op in body.ops if isinstance(op.attrs, ToHost) for v in op.results}
    return frozenset(at for at in stack.moved.values() if body.results[at] in away)


def offloaded(
    function: Function, stack: Stack, program: Program, chosen: frozenset[int]
) -> Program:
    """The program with these results of the forward scan given and taken by way of the host."""
    there = scan_of(function.ops[stack.forward]).function
    back = scan_of(function.ops[stack.backward]).function
    given = {program.function(there).results[at] for at in chosen}
    taken = {old for old, at in stack.moved.items() if at in chosen}
    return program.with_functions(
        giving(program.function(there), program, given, chosen),
        taking(program.function(back), program, taken),
    )


def giving(body: Function, program: Program, values: set[int], results: frozenset[int]) -> Function:
    """The forward body, with these values copied to the host as soon as they are there."""
    b = Builder(body.name, program.sizes, program.signatures)
    mapping = inputs(b, body)
    away: dict[int, int] = {}

    def copy(value: int, path: str) -> None:
        b.path = path
        away[value] = b.one(ToHost(), mapping[value])

    for value in range(len(body.inputs)):
        if value in values:
            copy(value, "")
    for op in body.ops:
        emit_op(b, op, mapping)
        for value in op.results:
            if value in values:
                copy(value, op.path)
    last = [
        away[value] if at in results else mapping[value] for at, value in enumerate(body.results)
    ]
    return b.finish(last, body.outputs, body.span)


def taking(body: Function, program: Program, values: set[int]) -> Function:
    """The backward body, with these inputs copied from the host just before their first use."""
    b = Builder(body.name, program.sizes, program.signatures)
    mapping = inputs(b, body)
    left = set(values)

    def fetch(used: tuple[int, ...]) -> None:
        for value in dict.fromkeys(used):
            if value in left:
                mapping[value] = b.one(FromHost(), mapping[value])
                left.discard(value)

    for op in body.ops:
        b.path, b.span = op.path, op.span
        fetch(op.operands)
        emit_op(b, op, mapping)
    fetch(body.results)
    return b.finish([mapping[v] for v in body.results], body.outputs, body.span)


def inputs(b: Builder, body: Function) -> dict[int, int]:
    """The inputs of a body."""
    return {
        number: b.input(given.name, body.types[number], given.role)
        for number, given in enumerate(body.inputs)
    }
