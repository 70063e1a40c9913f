"""recompute: training -> training, sharded -> sharded. Choose what is kept for the backward pass.

    recompute{selectors=[{selector=body.*,keep=[attn.attend]}]}

What a stack's forward scan hands to the scan that runs back over it is kept for every layer. This
pass keeps the values that take the fewest bytes in all: `cheap` lets it run elementwise ops, casts
and reductions again for it, and a directive forbids to keep anything under its selector but what
its `keep` names. The ops that are run again keep their paths, and random numbers are drawn by
counter, so the numbers stay the same to the last bit.

With a `budget` in bytes for what a rank keeps, values are chosen so that getting back the others
takes least time on the `target`; `in_flight` micro-batches are kept at once. Values may wait in
`host` bytes of host memory, and those must that `offload` selects; with `beside` copies run beside
other work. See `passes/recompute_budget.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Stop
from fllmc.ir.program import Function, Level, Program
from fllmc.ir.settings import Offload
from fllmc.ir.settings import Recompute as Directive
from fllmc.ir.target import Target
from fllmc.ir.walk import host_values
from fllmc.passes.base import AnyLevelPass, Context
from fllmc.passes.cut import Choices, values_to_keep
from fllmc.passes.errors import NothingToRecompute
from fllmc.passes.recompute_budget import Room, kept_within
from fllmc.passes.recompute_policy import Place, Policy, all_places, matches, mistakes
from fllmc.passes.recompute_rewrite import emit_op, rewritten, run_again
from fllmc.passes.recompute_stacks import decide, residuals, scan_of, stacks


class Recompute(AnyLevelPass, frozen=True):
    """Keep the cheapest set of values for the backward pass, within the directives."""

    name: ClassVar[str] = "recompute"
    keeps: ClassVar[str] = "bits"
    levels: ClassVar[tuple[Level, ...]] = ("training", "sharded")

    selectors: tuple[Directive, ...] = ()
    cheap: bool = True
    budget: int = -1
    in_flight: int = 1
    host: int = 0
    offload: tuple[Offload, ...] = ()
    beside: bool = False
    target: Target | None = None

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite every pair of scans, then what is kept over them outside of stacks."""
        policy = Policy(self.selectors, self.cheap)
        if self.target is not None and self.budget >= 0:
            host, offload, beside = self.host, self.offload, self.beside
            room = Room(self.budget, self.in_flight, self.target, host, offload, beside)
            return kept_within(program, policy, room)
        wrong = mistakes(policy, program)
        if wrong:
            raise DiagnosticError(*wrong)
        places = {name: found[0] for name, found in all_places(program).items()}
        for directive in idle(policy, program, places):
            cx.report(NothingToRecompute(directive.span, directive.selector))
        for name, place in reversed(places.items()):
            for stack in stacks(program.function(name)):
                function = program.function(name)
                now = residuals(function, stack.forward, stack.backward)
                decision = decide(function, now, program, policy, place)
                if not decision.keeps_all(function, now, program):
                    program = rewritten(function, now, decision, program)
            program = program.with_functions(
                around_stacks(program.function(name), program, policy, place)
            )
        return program


def idle(policy: Policy, program: Program, places: dict[str, Place]) -> tuple[Directive, ...]:
    """The directives that select nothing that is kept: neither in stacks nor over them."""
    useful: set[Directive] = set()
    for name, place in places.items():
        function = program.function(name)
        for stack in stacks(function):
            scan = function.ops[stack.forward]
            inside = place.inside(scan)
            ops = [(op, inside) for op in program.function(scan_of(scan).function).ops]
            ops += [(op, place) for op in function.ops[: stack.forward]]
            useful.update(
                rule
                for rule in policy.selectors
                if any(matches(rule.selector, op, where) for op, where in ops)
            )
    return tuple(rule for rule in policy.selectors if rule not in useful)


def around_stacks(function: Function, program: Program, policy: Policy, place: Place) -> Function:
    """The function with selected values from before its first stack computed again behind it.

    Only what would be kept over the stack and back is worth it; the rest is used at once.
    """
    pairs = stacks(function)
    if not policy.selectors or not pairs:
        return function
    start, end = min(p.forward for p in pairs), min(p.backward for p in pairs)
    before = function.ops[:start]
    selected = {v for op in before if policy.selected(op, place) for v in op.results}
    late = {v for op in function.ops[end:] for v in op.operands}
    late |= set(function.results)
    wanted = selected & late - host_values(function) - set(function.results)
    if not wanted:
        return function
    kept = kept_around(function, start, selected, wanted, late, program)
    again: dict[int, int] = {}
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for at, op in enumerate(function.ops):
        if at == end:
            again = {v: mapping[v] for v in (*range(len(function.inputs)), *sorted(kept))}
            again |= set_apart(b, function, wanted, again)
        if at >= end:
            for value in op.operands:
                if value in wanted:
                    run_again(b, function, value, again)
                    mapping[value] = again[value]
        emit_op(b, op, mapping)
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


def set_apart(
    b: Builder, function: Function, wanted: Iterable[int], have: Mapping[int, int]
) -> dict[int, int]:
    """What is had and what is computed again from it takes, each as a value of its own.

    Else the ops would be equal to those before the stack, and `share-equal` would undo it all.
    Parameters are there anyway, and what is made of them alone is made once.
    """
    own = {n for n, given in enumerate(function.inputs) if given.role == "param"}
    makers = {value: op for op in function.ops for value in op.results}
    host, found = host_values(function), set[int]()
    todo = list(wanted)
    while todo:
        value = todo.pop()
        if value in have:
            found.add(value)
        else:
            todo += makers[value].operands
    return {value: b.one(Stop(), have[value]) for value in sorted(found - host - own)}


def kept_around(
    function: Function,
    start: int,
    selected: set[int],
    wanted: set[int],
    late: set[int],
    program: Program,
) -> frozenset[int]:
    """The values before op `start` from which the wanted ones are computed again."""
    inputs, host = range(len(function.inputs)), host_values(function)
    before = function.ops[:start]
    count = len(inputs) + sum(len(op.results) for op in before)
    again = [op for op in before if selected.issuperset(op.results) or host.issuperset(op.results)]
    made = {v for op in again for v in op.results}
    sizes = program.sizes
    feeds = tuple((a, v) for op in again for a in op.operands for v in op.results)

    def cost(value: int) -> int | None:
        if value in made:
            return None
        return 0 if value in inputs or value in late else sizes.local_bytes(function.types[value])

    costs = tuple(cost(value) for value in range(count))
    fixed = frozenset(range(count)) - made
    return values_to_keep(Choices(costs, fixed, feeds, tuple(sorted(wanted))))
