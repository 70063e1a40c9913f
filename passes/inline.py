"""inline: model -> model. Put the ops of called functions where they are called.

    %3 = call{function=rms_norm}(%0, %1)  # attn_norm
    ->
    %3 = mul(%0, %0)  # attn_norm.square
    %4 = sum{dims=[embed]}(%3)  # attn_norm.mean

Bodies of scans stay functions, without calls. Functions that nothing runs any more are dropped.
"""

from __future__ import annotations

from graphlib import TopologicalSorter
from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.matrices import GROUPS
from fllmc.ir.ops import Call
from fllmc.ir.program import Function, Level, Program, callees
from fllmc.passes.base import Context, Pass

LOSS = "loss"
"""The function of a loss that the spec gives, of the model's result and columns of the data."""
EQUATIONS = (LOSS, "optimizer", "optimizer.no_decay", "optimizer.states", "rate")
"""Functions that no op names, but that later passes take the optimizer from."""


def equations(program: Program) -> tuple[str, ...]:
    """Functions that no op names, but that the step of parameters and states is made of."""
    groups = (f.name for f in program.functions if f.name.startswith(GROUPS))
    updates = dict.fromkeys(p.stepped_by for p in program.parameters if p.stepped_by)
    return (*EQUATIONS, *groups, *updates)


def callees_first(program: Program) -> tuple[Function, ...]:
    """All functions, each behind those that it runs."""
    by_name = {function.name: function for function in program.functions}
    order = TopologicalSorter({name: sorted(set(callees(f))) for name, f in by_name.items()})
    return tuple(by_name[name] for name in order.static_order())


def reachable(program: Program, roots: tuple[str, ...]) -> set[str]:
    """Names of the functions that the roots run, themselves included."""
    by_name = {function.name: function for function in program.functions}
    todo = [name for name in roots if name in by_name]
    found = set(todo)
    while todo:
        for name in callees(by_name[todo.pop()]):
            if name not in found:
                found.add(name)
                todo.append(name)
    return found


def flattened(function: Function, flat: dict[str, Function], program: Program) -> Function:
    """The function with the ops of its callees, which are in `flat` already."""
    if not any(isinstance(op.attrs, Call) for op in function.ops):
        return function
    signatures = {**program.signatures, **{name: done.signature for name, done in flat.items()}}
    b = Builder(function.name, program.sizes, signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for op in function.ops:
        operands = [mapping[value] for value in op.operands]
        if isinstance(op.attrs, Call):
            b.path, b.span = "", op.span
            results = b.copy(flat[op.attrs.function], operands, op.path)
        else:
            b.path, b.span = op.path, op.span
            results = b.emit(op.attrs, *operands)
        mapping.update(zip(op.results, results, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


class Inline(Pass, frozen=True):
    """Flatten all calls; the paths of their ops are put under the path of the call."""

    name: ClassVar[str] = "inline"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """Flatten every function, those that are called before those that call them."""
        flat: dict[str, Function] = {}
        for function in callees_first(program):
            flat[function.name] = flattened(function, flat, program)
        whole = program.with_functions(*flat.values())
        used = reachable(whole, (*program.entries, *equations(whole)))
        return whole.with_functions(drop=tuple(n for n in flat if n not in used))
