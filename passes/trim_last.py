"""trim-last: plan -> plan. The last turn of a scan leaves out what only further turns would need.

    %8, %9 = scan{function=layer.backward,over=layers,carries=1,reverse=true}(...), %8 is unused
    ->
    %8, %9 = scan{function=layer.backward,...,final=layer.backward.last}(...)

So the backward pass of a stack ends at the lowest op of its first layer that trains: where nothing
below the stack trains, nobody reads the cotangent of the stack's input, and the first layer's work
for it is not done. In that turn the carry is handed through. Where one turn is all there is, it is
the scan's only function.
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from fllmc.ir.ops import Fused, Scan
from fllmc.ir.program import Function, Level, Op, Program, callees
from fllmc.passes.base import Context, Pass
from fllmc.passes.drop_unused import Needed, settle, trimmed
from fllmc.passes.inline import callees_first, reachable
from fllmc.passes.naming import unique


class TrimLast(Pass, frozen=True):
    """Give scans whose last carries are unused a function of their own for the last turn."""

    name: ClassVar[str] = "trim-last"
    takes: ClassVar[Level] = "plan"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """The program with last turns trimmed, and without functions that no turn runs."""
        called = {name for function in program.functions for name in callees(function)}
        roots = tuple(f.name for f in program.functions if f.name not in called)
        for function in callees_first(program):
            ops = list(function.ops)
            for at, op in enumerate(ops):
                unread = unread_carries(function, op)
                if unread:
                    program, ops[at] = with_final(program, op, unread)
            program = program.with_functions(structs.replace(function, ops=tuple(ops)))
        used = reachable(program, roots)
        return program.with_functions(
            drop=tuple(f.name for f in program.functions if f.name not in used)
        )


def unread_carries(function: Function, op: Op) -> list[int]:
    """The carries of a scan over a stack whose last value nobody reads."""
    if not isinstance(op.attrs, Scan) or op.attrs.final or op.attrs.over == "microbatches":
        return []
    read = {value for each in function.ops for value in each.operands} | {*function.results}
    return [c for c in range(op.attrs.carries) if op.results[c] not in read]


def with_final(program: Program, op: Op, unread: list[int]) -> tuple[Program, Op]:
    """The program with a function for the last turn, if it can leave something out, and the op."""
    assert isinstance(op.attrs, Scan)
    body = program.function(op.attrs.function)
    results = tuple(n if n in unread else v for n, v in enumerate(body.results))
    wider, last = own_copy(program, structs.replace(body, results=results))
    needed = {f.name: Needed(set(), set(), set()) for f in wider.functions}
    needed[last].inputs.update(range(len(body.inputs)))
    needed[last].results.update(range(len(results)))
    mine = reachable(wider, (last,))
    order = [function for function in callees_first(wider) if function.name in mine]
    settle(tuple(reversed(order)), needed)
    signatures = dict(wider.signatures)
    for function in order:
        if needed[function.name].results:
            new = trimmed(function, needed, wider, signatures)
            signatures[new.name] = new.signature
            wider = wider.with_functions(new)
    left = reachable(wider, (last,))
    if work(wider, last) == work(program, body.name):
        return program, op
    wider = wider.with_functions(drop=tuple(sorted(mine - left)))
    changed = {"function" if program.sizes.size(op.attrs.over) == 1 else "final": last}
    return wider, structs.replace(op, attrs=structs.replace(op.attrs, **changed))


def work(program: Program, name: str) -> int:
    """The number of ops of a function and of those that it runs."""
    return sum(len(program.function(each).ops) for each in sorted(reachable(program, (name,))))


def own_copy(program: Program, body: Function) -> tuple[Program, str]:
    """The program with a copy of a function, and of all that this runs, under new names."""
    taken = {function.name for function in program.functions}
    name = unique(f"{body.name}.last", taken)
    ops: list[Op] = []
    for op in body.ops:
        if isinstance(op.attrs, Fused | Scan):
            inner = program.function(op.attrs.function)
            program, copied = own_copy(program, inner)
            op = structs.replace(op, attrs=structs.replace(op.attrs, function=copied))
        ops.append(op)
    return program.with_functions(structs.replace(body, name=name, ops=tuple(ops))), name
