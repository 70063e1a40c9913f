"""share-equal: any level. Compute equal things of one function once.

    %3 = mul(%0, %1); %4 = mul(%0, %1); %5 = add(%3, %4)
    ->
    %3 = mul(%0, %1); %4 = add(%3, %3)

All ops are pure (random numbers are drawn by counter), so two ops with the same attributes and
operands give the same values; the first stays, with its path. What `recompute` computes twice on
purpose it sets apart. Collectives in which stages of a pipeline meet stay: each stage has a program
of its own, and all of them have to make the same calls.
"""

from __future__ import annotations

from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import COLLECTIVES
from fllmc.ir.program import Function, Program
from fllmc.passes.base import AnyLevelPass, Context
from fllmc.passes.flights import pipe_axes


def shared(function: Function, program: Program) -> Function:
    """The function without repeated ops; itself if it has none."""
    encode = msgspec.msgpack.Encoder().encode  # unlike ==, it tells 0.0 from -0.0
    pipes = pipe_axes(program)
    first: dict[tuple[bytes, tuple[int, ...]], tuple[int, ...]] = {}
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for op in function.ops:
        operands = tuple(mapping[value] for value in op.operands)
        key = (encode(op.attrs), operands)
        meeting = isinstance(op.attrs, COLLECTIVES) and bool(pipes.intersection(op.attrs.axes))
        if meeting or key not in first:
            b.path, b.span = op.path, op.span
            first[key] = b.emit(op.attrs, *operands)
        mapping.update(zip(op.results, first[key], strict=True))
    if len(b.ops) == len(function.ops):
        return function
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


class ShareEqual(AnyLevelPass, frozen=True):
    """Merge ops with equal attributes and operands within each function."""

    name: ClassVar[str] = "share-equal"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """Merge within every function."""
        return program.with_functions(*(shared(f, program) for f in program.functions))
