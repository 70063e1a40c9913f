"""early-rows: model -> model, training -> training. Rows are taken before products, not behind.

Of a parameter whose rows train in part (`split_rows.py`) a lookup reads the parts, so that the
whole is never put together:

    %5 = add(%0, put{dim=vocab}(%2, %3)); %7 = take{dim=vocab}(%5, %6)
    ->
    %8 = take{dim=vocab}(%0, %6)
    %9 = take{dim=embedding_rows}(%3, reindex{dim=embedding_rows, first=100}(%6)); %7 = add(%8, %9)

and a weight gradient is computed of the rows that train, and not of those that nobody wants:

    %5 = dot{contract=[batch, seq]}(%0, %1); %6 = take{dim=embed}(%5, %2)
    ->
    %7 = take{dim=embed}(%0, %2); %6 = dot{contract=[batch, seq]}(%7, %1)
"""

from __future__ import annotations

from typing import ClassVar

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import (
    Add,
    AddN,
    AnyAttrs,
    Cast,
    Dot,
    Iota,
    Neg,
    Put,
    Reindex,
    Sub,
    Take,
    Transpose,
)
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.passes.base import AnyLevelPass, Context
from fllmc.passes.gradient_site import ordered

SUMS = (Add, AddN, Cast, Neg, Sub)
"""Ops of which each row depends on that row alone of every operand, all of one shape."""


class EarlyRows(AnyLevelPass, frozen=True):
    """Look up in parts, and multiply only the rows that are taken of the product."""

    name: ClassVar[str] = "early-rows"
    keeps: ClassVar[str] = "math"
    levels: ClassVar[tuple[Level, ...]] = ("model", "training")

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite every function that takes rows."""
        del cx
        if not any(parameter.part_of for parameter in program.parameters):
            return program
        return program.with_functions(*(Early(f, program).rewritten() for f in program.functions))


class Early:
    """One function being rewritten."""

    def __init__(self, function: Function, program: Program) -> None:
        self.function = function
        self.b = Builder(function.name, program.sizes, program.signatures)
        self.mapping: dict[int, int] = {}
        self.makers = {value: op for op in function.ops for value in op.results}

    def rewritten(self) -> Function:
        """The function with rows taken early; what nobody needs any more goes later."""
        b, function = self.b, self.function
        for number, given in enumerate(function.inputs):
            self.mapping[number] = b.input(given.name, function.types[number], given.role)
        for op in function.ops:
            b.path, b.span = op.path, op.span
            found = self.taken(op, op.attrs) if isinstance(op.attrs, Take) else None
            results = (found,) if found is not None else b.emit(op.attrs, *self.given(op))
            self.mapping.update(zip(op.results, results, strict=True))
        return b.finish(
            [self.mapping[v] for v in function.results], function.outputs, function.span
        )

    def given(self, op: Op) -> list[int]:
        """The op's operands."""
        return [self.mapping[value] for value in op.operands]

    def taken(self, op: Op, attrs: Take) -> int | None:
        """What a take gives, made another way if there is a better one."""
        table, index = op.operands
        if self.rows_put(table, attrs.dim) is not None:
            return self.looked_up(table, index, attrs)
        places = self.makers.get(index)
        if places is None or not isinstance(places.attrs, Iota):
            return None
        return ordered(self.b, self.rows(table, attrs, index), self.function.types[op.results[0]])

    def rows_put(self, value: int, dim: str) -> Op | None:
        """The op that puts rows along a dim into the value, which is its sum with others."""
        maker = self.makers.get(value)
        last = self.makers.get(maker.operands[-1]) if maker and type(maker.attrs) is Add else None
        fits = last is not None and isinstance(last.attrs, Put) and last.attrs.dim.name == dim
        return last if fits and last and self.stretch(last) is not None else None

    def stretch(self, put: Op) -> Iota | None:
        """The rows that are put, if they are a stretch."""
        places = self.makers.get(put.operands[0])
        return places.attrs if places is not None and isinstance(places.attrs, Iota) else None

    def looked_up(self, table: int, index: int, attrs: Take) -> int:
        """A lookup in all parts of a table."""
        put = self.rows_put(table, attrs.dim)
        if put is None:
            return self.b.one(attrs, self.mapping[table], self.mapping[index])
        rest = self.looked_up(self.makers[table].operands[0], index, attrs)
        rows = self.stretch(put)
        assert rows is not None
        own = self.b.one(Reindex(rows.dim.name, rows.first), self.mapping[index])
        part = self.b.one(Take(rows.dim.name), self.mapping[put.operands[1]], own)
        return self.b.add(rest, part)

    def rows(self, value: int, attrs: Take, index: int) -> int:
        """The rows of a value, of the same rows of what it is made of where that can be."""
        maker = self.makers.get(value)
        kinds = self.function.types
        made: AnyAttrs | None = maker.attrs if maker else None
        if maker is not None and self.by_rows(maker, attrs.dim):
            operands = [
                self.rows(v, attrs, index) if attrs.dim in kinds[v].names else self.mapping[v]
                for v in maker.operands
            ]
            if isinstance(made, Transpose):
                (rows,) = kinds[index].names
                made = structs.replace(
                    made, order=tuple(rows if n == attrs.dim else n for n in made.order)
                )
            assert made is not None
            return self.b.one(made, *operands)
        return self.b.one(attrs, self.mapping[value], self.mapping[index])

    def by_rows(self, maker: Op, dim: str) -> bool:
        """Whether each row of the op's result follows from that row of its operands."""
        kinds = self.function.types
        if type(maker.attrs) is Dot:
            return dim not in maker.attrs.contract
        if isinstance(maker.attrs, SUMS):
            return all(dim in kinds[value].names for value in maker.operands)
        return isinstance(maker.attrs, Transpose)
