"""pick-early: training -> training. What is wanted at one position is computed at that position.

    %2: [batch, seq, vocab] = dot{contract=[embed]}(%0, %1); %3 = pick{dim=seq}(%2, %p)
    ->
    %2: [batch, embed] = pick{dim=seq}(%0, %p); %3 = dot{contract=[embed]}(%2, %1)

The pick moves ahead of everything that treats positions alike, up to what mixes them.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import AnyAttrs, Dot, Elementwise, Fill, Pick, ReduceSum, Rename, Transpose
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.passes.base import Context, Pass


class PickEarly(Pass, frozen=True):
    """Pick a position before what is done for each position alone."""

    name: ClassVar[str] = "pick-early"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite every function that picks one position for all."""
        del cx
        return program.with_functions(
            *(picked(function, program) for function in program.functions if picks(function))
        )


def picks(function: Function) -> bool:
    """Whether some op picks one position of a dim for all others."""
    return any(is_plain(function, op) for op in function.ops)


def is_plain(function: Function, op: Op) -> bool:
    """Whether the op picks the same position everywhere: its index has no dims."""
    return isinstance(op.attrs, Pick) and not function.types[op.operands[1]].dims


def picked(function: Function, program: Program) -> Function:
    """The function with its picks moved ahead."""
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for op in function.ops:
        b.path, b.span = op.path, op.span
        if isinstance(op.attrs, Pick) and is_plain(function, op):
            ahead = Ahead(b, function, mapping, op.attrs.dim, mapping[op.operands[1]])
            mapping[op.results[0]] = ahead.at_position(op.operands[0])
        else:
            results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
            mapping.update(zip(op.results, results, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


class Ahead:
    """Values of a function at one position of a dim, each made once."""

    def __init__(
        self, b: Builder, function: Function, mapping: dict[int, int], dim: str, index: int
    ) -> None:
        self.b, self.function, self.mapping = b, function, mapping
        self.dim, self.index = dim, index
        self.makers = {value: op for op in function.ops for value in op.results}
        self.known: dict[int, int] = {}

    def at_position(self, value: int) -> int:
        """The value at the position; the value itself if it is the same at all."""
        if self.dim not in self.function.types[value].names:
            return self.mapping[value]
        if value not in self.known:
            op = self.makers.get(value)
            if op is not None and self.moves_over(op):
                operands = [self.at_position(operand) for operand in op.operands]
                self.b.path, self.b.span = op.path, op.span
                self.known[value] = self.b.one(self.within(op), *operands)
            else:
                self.known[value] = self.b.one(Pick(self.dim), self.mapping[value], self.index)
        return self.known[value]

    def moves_over(self, op: Op) -> bool:
        """Whether the op does the same for each position alone."""
        alike = isinstance(op.attrs, Dot | Elementwise | Fill | ReduceSum | Transpose)
        renamed = isinstance(op.attrs, Rename) and all(
            self.dim not in pair for pair in op.attrs.pairs
        )
        indices = any(self.function.types[value].index for value in op.operands)
        return (alike or renamed) and not indices

    def within(self, op: Op) -> AnyAttrs:
        """The op's attributes without the dim. One that is reduced is not in the result."""
        attrs = op.attrs
        if isinstance(attrs, Fill):
            dims = tuple(dim for dim in attrs.dims if dim.name != self.dim)
            return msgspec.structs.replace(attrs, dims=dims)
        if isinstance(attrs, Transpose):
            order = tuple(name for name in attrs.order if name != self.dim)
            return msgspec.structs.replace(attrs, order=order)
        return attrs
