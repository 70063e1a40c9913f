"""sink-sums: plan -> plan. Let products and scatters add to what is there already.

    %3 = dot{contract=[embed]}(%0, %1); %4 = add(%2, %3)
    ->
    %4 = dot_add{contract=[embed]}(%2, %0, %1)

when the product has no other use. An `addn` becomes a chain. So gradients of several uses of a
value, micro-batches' weight gradients and residual sums cost no pass of their own over memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.ops import Add, AddN, Dot, DotAdd, Mul, MulAdd, MulSub, Put, PutAdd, Sub
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.walk import host_values
from fllmc.passes.base import Context, Pass


def products(function: Function) -> dict[int, Op]:
    """Tensors made by a dot, put or mul that are used exactly once, with their op."""
    numbers = host_values(function)
    uses: dict[int, int] = {}
    for value in (*function.results, *(v for op in function.ops for v in op.operands)):
        uses[value] = uses.get(value, 0) + 1
    return {
        op.results[0]: op
        for op in function.ops
        if type(op.attrs) in (Dot, Mul, Put)
        and uses.get(op.results[0]) == 1
        and op.results[0] not in numbers
    }


def sinkable(function: Function, op: Op, found: dict[int, Op]) -> list[int]:
    """The operands of a sum that can be added by their own op, all but one start value."""
    if isinstance(op.attrs, Sub):
        base, product = op.operands
        fits = function.types[base] == function.types[op.results[0]] == function.types[product]
        return (
            [product]
            if fits and isinstance(getattr(found.get(product), "attrs", None), Mul)
            else []
        )
    if not isinstance(op.attrs, Add | AddN):
        return []
    kind = function.types[op.results[0]]
    good = [v for v in op.operands if v in found and function.types[v] == kind]
    rest = [v for v in op.operands if v not in good]
    if not rest:
        return good[1:]
    if any(function.types[value] != kind for value in rest):
        return good[1:] if good else []
    return good


def emit_sum(b: Builder, mapping: dict[int, int], op: Op, sunk: Sequence[tuple[int, Op]]) -> int:
    """The sum of what stays, then one accumulating op for each sunk product."""
    stays = [mapping[v] for v in op.operands if v not in {value for value, _ in sunk}]
    total = stays[0] if len(stays) == 1 else b.one(Add() if len(stays) == 2 else AddN(), *stays)
    outer = b.path, b.span
    for _, maker in sunk:
        attrs = maker.attrs
        b.path, b.span = maker.path, maker.span
        operands = [mapping[value] for value in maker.operands]
        if isinstance(attrs, Dot):
            total = b.one(DotAdd(attrs.contract), total, *operands)
        elif isinstance(attrs, Put):
            total = b.one(PutAdd(attrs.dim), total, *operands)
        else:
            total = b.one(MulSub() if isinstance(op.attrs, Sub) else MulAdd(), total, *operands)
    b.path, b.span = outer
    return total


def with_sums_sunk(function: Function, program: Program) -> Function:
    """The function with accumulating products."""
    found = products(function)
    sums = {
        op.results[0]: sinkable(function, op, found) for op in function.ops if len(op.results) == 1
    }
    sunk = {value for values in sums.values() for value in values}
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for op in function.ops:
        b.path, b.span = op.path, op.span
        if len(op.results) == 1 and op.results[0] in sunk:
            continue
        values = sums.get(op.results[0], []) if len(op.results) == 1 else []
        if values:
            mapping[op.results[0]] = emit_sum(b, mapping, op, [(v, found[v]) for v in values])
            continue
        results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
        mapping.update(zip(op.results, results, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


class SinkSums(Pass, frozen=True):
    """Turn sums of products into accumulating products."""

    name: ClassVar[str] = "sink-sums"
    takes: ClassVar[Level] = "plan"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "math"

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite every function; optimizer equations have no products and stay."""
        del cx
        return program.with_functions(*(with_sums_sunk(f, program) for f in program.functions))
