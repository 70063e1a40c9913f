"""split-rows: model -> model, behind `apply-adapter`. Parameters of which some rows train.

    split-rows{rows=[{selector=embedding,first=0,stop=100}],dtype=bf16}

    param embedding: f32[vocab, embed]
    ->
    param embedding: bf16[vocab, embed] {trainable=false, rows=[0, 100]}
    param embedding.rows: f32[embedding_rows, embed] {part_of=embedding, rows=[100, 256]}

Rows count along the first dim, in a stack along each layer's. The frozen part has the whole's dims,
so that it is placed as the whole would be and never moves for the others' sake; where rows train it
holds zeros. At each use the value is the sum of it and the trained rows, put at their places:

    %2 = iota{dim=embedding_rows, first=100, of=vocab}()
    %4 = put{dim=vocab}(%2, %3); %5 = add(%0, %4)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.ops import Iota, Put
from fllmc.ir.program import Level, Parameter, Program
from fllmc.ir.select import selects_parameter
from fllmc.ir.settings import Rows
from fllmc.ir.types import DTYPE_BYTES, Dim
from fllmc.passes.apply_adapter import nothing, shown_path
from fllmc.passes.base import Context, Pass
from fllmc.passes.errors import NoSuchRows, RowsOverlap, RowsSettled
from fllmc.passes.naming import unique
from fllmc.passes.stored_forms import Form, restored

Stretches = tuple[tuple[int, int], ...]


class InParts(Form, frozen=True):
    """A frozen part as large as the whole, and trained parts that are put at their rows."""

    def value(self, b: Builder, parts: Sequence[int], dtype: str) -> int:
        """The parts together."""
        frozen, *trained = parts
        dim = self.base.row_dim
        whole = b.cast(frozen, dtype)
        for value, part in zip(trained, self.parts[1:], strict=True):
            rows, first = part.row_dim, part.rows[0]
            places = b.one(Iota(Dim(rows), first, dim))
            whole = b.add(whole, b.one(Put(Dim(dim)), places, b.cast(value, dtype)))
        return whole


class SplitRows(Pass, frozen=True):
    """Divide what trains in part; frozen rows are stored in `dtype`, that of computation."""

    name: ClassVar[str] = "split-rows"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "new"

    rows: tuple[Rows, ...] = ()
    dtype: str = "f32"

    def run(self, program: Program, cx: Context) -> Program:
        """The program on parts; DiagnosticError with all rows that make no sense."""
        del cx
        wrong = mistakes(program, self.rows)
        if wrong:
            raise DiagnosticError(*wrong)
        forms: dict[str, Form] = {}
        parameters: list[Parameter] = []
        for parameter in program.parameters:
            if any(speaks_of(each, parameter) for each in self.rows):
                trained = trained_rows(parameter, program, self.rows)
                parameter = msgspec.structs.replace(parameter, trainable=bool(trained))
                if complement(trained, row_count(parameter, program)) and trained:
                    forms[parameter.name], program = self.form(parameter, trained, program)
            parameters.append(parameter)
        return restored(msgspec.structs.replace(program, parameters=tuple(parameters)), forms)

    def form(self, base: Parameter, stretches: Stretches, program: Program) -> tuple[Form, Program]:
        """How a parameter is stored of which these rows train, and the program with their dims."""
        frozen = complement(stretches, row_count(base, program))
        narrow = min(base.type.dtype, self.dtype, key=lambda name: DTYPE_BYTES[name])
        kind = msgspec.structs.replace(base.type, dtype=narrow)
        ends = tuple(end for stretch in frozen for end in stretch)
        parts = [msgspec.structs.replace(base, type=kind, trainable=False, rows=ends)]
        taken = {p.name for p in program.parameters}
        for first, stop in stretches:
            name = unique(f"{base.name}.rows", taken)
            taken.add(name)
            dim = unique(name.replace(".", "_"), program.sizes.dims)
            program = program.with_dim(dim, stop - first)
            parts.append(trained_part(base, name, dim, (first, stop)))
        return InParts(base, tuple(parts)), program


def trained_part(base: Parameter, name: str, dim: str, stretch: tuple[int, int]) -> Parameter:
    """The part that holds rows of a parameter that train."""
    old = base.row_dim
    dims = [Dim(dim) if each.name == old else each for each in base.type.dims]
    return msgspec.structs.replace(
        base,
        name=name,
        type=base.type.placed(dims),
        trainable=True,
        part_of=base.name,
        rows=stretch,
    )


def row_count(parameter: Parameter, program: Program) -> int:
    """The number of rows; 0 for a single number."""
    dim = parameter.row_dim
    return program.sizes.size(dim) if dim else 0


def speaks_of(rows: Rows, parameter: Parameter) -> bool:
    """Whether rows of the parameter are selected; low-rank updates have no part in it."""
    return not parameter.updates and selects_parameter(rows.selector, parameter)


def complement(stretches: Stretches, count: int) -> Stretches:
    """The rows in none of the stretches, which are sorted."""
    ends = [0, *(end for stretch in stretches for end in stretch), count]
    return tuple((a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b)


def trained_rows(parameter: Parameter, program: Program, rows: Sequence[Rows]) -> Stretches:
    """The stretches of rows that train, in order, none touching another."""
    chosen = sorted((r.first, r.stop) for r in rows if speaks_of(r, parameter))
    count = row_count(parameter, program)
    gaps = complement(tuple(chosen), count)
    # Twice the complement joins stretches that touch.
    return gaps if parameter.trainable else complement(gaps, count)


def mistakes(program: Program, rows: Sequence[Rows]) -> list[Diagnostic]:
    """Everything that is wrong with the directives."""
    found: list[Diagnostic] = []
    for number, each in enumerate(rows):
        verb = "tune" if each.tune else "freeze"
        chosen = [p for p in program.parameters if speaks_of(each, p)]
        if not chosen:
            found.append(nothing(verb, each.selector, each.span, program))
        for parameter in chosen:
            wrong = mistake(parameter, each, rows[:number], program)
            if wrong is not None:
                found.append(wrong)
                break
    return found


def mistake(
    parameter: Parameter, rows: Rows, before: Sequence[Rows], program: Program
) -> Diagnostic | None:
    """What is wrong with the rows of one parameter."""
    count, dim = row_count(parameter, program), parameter.row_dim
    if rows.stop > count:
        return NoSuchRows(rows.span, shown_path(parameter), rows.first, rows.stop, count, dim)
    if parameter.trainable == rows.tune:
        verb, state = ("tune", "trains") if rows.tune else ("freeze", "is frozen")
        return RowsSettled(rows.span, verb, shown_path(parameter), state)
    for other in before:
        meet = other.first < rows.stop and rows.first < other.stop
        if meet and speaks_of(other, parameter):
            low, high = max(rows.first, other.first), min(rows.stop, other.stop)
            return RowsOverlap(rows.span, shown_path(parameter), low, high, other.span)
    return None
