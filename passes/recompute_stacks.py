"""Recomputation within a stack: what the forward scan keeps for the scan that runs back over it.

    %4, %5, %6 = scan{function=layer,over=layers,carries=1,slices=1}(%0, %1)
    %7, ... = scan{function=layer.grad,over=layers,carries=1,slices=3,reverse=true}(%2, %1, %5, %6)

`%5, %6` are residuals: values of `layer`, stacked over the layers. A cheapest set of values to keep
is found; the forward body gives these instead, and the backward body runs the ops between again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import msgspec

from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.walk import host_values
from fllmc.passes.cut import Choices, values_to_keep
from fllmc.passes.recompute_policy import Place, Policy, never_kept


class Stack(msgspec.Struct, frozen=True):
    """A forward scan and a backward scan over the same stack, by their positions in a function.

    `moved` maps positions among the backward scan's operands to positions among the forward scan's
    results: the residuals that nothing but the backward scan takes.
    """

    forward: int
    backward: int
    moved: Mapping[int, int]


def scan_of(op: Op) -> Scan:
    """The attributes of an op known to be a scan."""
    if not isinstance(op.attrs, Scan):
        raise TypeError(op.kind)
    return op.attrs


def stacks(function: Function) -> list[Stack]:
    """All pairs of scans in the function with residuals between them."""
    scans = [at for at, op in enumerate(function.ops) if isinstance(op.attrs, Scan)]
    found = [
        residuals(function, forward, backward)
        for forward in scans
        for backward in scans
        if forward < backward
    ]
    return [stack for stack in found if stack.moved]


def residuals(function: Function, forward: int, backward: int) -> Stack:
    """The pair of scans, with no residuals if they do not belong together."""
    first, second = function.ops[forward], function.ops[backward]
    there, back = scan_of(first), scan_of(second)
    if there.over != back.over or there.reverse == back.reverse:
        return Stack(forward, backward, {})
    others = [op for at, op in enumerate(function.ops) if at != backward]
    slices = range(back.carries, back.carries + back.slices)
    taken = {v for op in others for v in op.operands} | set(function.results)
    taken.update(v for at, v in enumerate(second.operands) if at not in slices)
    given = {v: at for at, v in enumerate(first.results) if at >= there.carries and v not in taken}
    moved = {at: given[second.operands[at]] for at in slices if second.operands[at] in given}
    return Stack(forward, backward, moved)


class Decision(msgspec.Struct, frozen=True):
    """Values of the forward body: stacked for the backward scan, and taken from its inputs."""

    saved: tuple[int, ...]
    slices: tuple[int, ...]
    shared: tuple[int, ...]

    def keeps_all(self, function: Function, stack: Stack, program: Program) -> bool:
        """Whether just the residuals are saved, so that all is well as it is."""
        body = program.function(scan_of(function.ops[stack.forward]).function)
        return self.saved == tuple(sorted(body.results[at] for at in stack.moved.values()))


def decide(
    function: Function, stack: Stack, program: Program, policy: Policy, place: Place
) -> Decision:
    """The cheapest set of values of the forward body from which all residuals can be had."""
    first = function.ops[stack.forward]
    scan = scan_of(first)
    body = program.function(scan.function)
    inside = place.inside(first)
    always = host_values(body) | never_kept(body)
    again = [
        op for op in body.ops if policy.recomputable(op, inside) or always.issuperset(op.results)
    ]
    made = {value for op in again for value in op.results}
    feeds = tuple((a, b) for op in again for a in op.operands for b in op.results)
    costs = keeping_costs(function, stack, program, body)
    for op in body.ops:
        if policy.selected(op, inside):
            costs.update(dict.fromkeys(op.results))
    count = len(body.types)
    kept = values_to_keep(
        Choices(
            tuple(costs[value] for value in range(count)),
            frozenset(range(count)) - made,
            feeds,
            tuple(sorted({body.results[at] for at in stack.moved.values()})),
        )
    )
    return decision_of(kept, scan, body)


def decision_of(kept: Collection[int], scan: Scan, body: Function) -> Decision:
    """Kept values of the forward body by how the backward scan gets them."""
    stop = scan.carries + scan.slices
    return Decision(
        tuple(v for v in sorted(kept) if v < scan.carries or v >= len(body.inputs)),
        tuple(v for v in sorted(kept) if scan.carries <= v < stop),
        tuple(v for v in sorted(kept) if stop <= v < len(body.inputs)),
    )


def keeping_costs(
    function: Function, stack: Stack, program: Program, body: Function
) -> dict[int, int | None]:
    """Bytes for keeping each value of the forward body until the backward scan, over all layers.

    What the forward scan is given costs nothing if it is an input, or used behind it anyway. Host
    scalars are no tensors, so they can't be kept, but they can always be recomputed.
    """
    first, scan = function.ops[stack.forward], scan_of(function.ops[stack.forward])
    layers, sizes = program.sizes.size(scan.over), program.sizes
    late = {v for op in function.ops[stack.backward :] for v in op.operands}
    late |= set(function.results) | set(range(len(function.inputs)))
    costs: dict[int, int | None] = {
        value: layers * sizes.local_bytes(kind) for value, kind in enumerate(body.types)
    }
    costs.update(dict.fromkeys((*host_values(body), *never_kept(body))))
    for value in range(scan.carries, len(body.inputs)):
        operand = first.operands[value]
        free = operand in late or operand in host_values(function)
        costs[value] = 0 if free else sizes.local_bytes(function.types[operand])
    moved = set(stack.moved.values())
    for at in range(scan.carries, len(body.results)):
        if at not in moved:
            costs[body.results[at]] = 0
    return costs
