"""keep-apart: model -> model, behind `inline`. Documents in one sample know nothing of each other.

    %5 = attend{along=seq}(%q, %k, %v); %6 = iota{dim=seq}()
    ->
    %5 = attend{along=seq documents=true}(%q, %k, %v, %starts); %6 is the data input `positions`

The data gives `starts: seq[batch, seq]`, the place where each token's document begins, and
`positions: seq[batch, seq]`, its place within that; bodies of stacks are handed them. Rotary
positions stay as they are: queries and keys turn by the same angle more, so no score changes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from msgspec import Struct, structs

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.ops import (
    Attend,
    Attrs,
    Combine,
    Conv,
    Dispatch,
    Dot,
    GroupedDot,
    Iota,
    Reduce,
    Rename,
    Rope,
    Scan,
    Tally,
    Transpose,
)
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Type, indices
from fllmc.passes.apply_loss import BATCH, MODEL, PENALTY
from fllmc.passes.base import Context, Pass
from fllmc.passes.inline import callees_first
from fllmc.passes.training_errors import DocumentsMeet

STARTS, POSITIONS = "starts", "positions"
FIELDS = (STARTS, POSITIONS)
BY_TOKEN = (Rope, Iota, Dispatch, Combine, Tally, GroupedDot)
"""Ops that name the sequence and still look at one token at a time, or at none."""


class KeepApart(Pass, frozen=True):
    """Let attention begin where a document does, and positions count from there."""

    name: ClassVar[str] = "keep-apart"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "new"

    def run(self, program: Program, cx: Context) -> Program:
        """The program, whose model takes further data where it needs any."""
        along = sequence(program.function(MODEL))
        if not along:
            return program
        found = [each for function in program.functions for each in meeting(function, along)]
        if found:
            raise DiagnosticError(*found)
        given: dict[str, tuple[str, ...]] = {}
        for function in callees_first(program):
            made, fields = Apart(program, function, along, given).run()
            given[function.name] = fields
            program = program.with_functions(made)
        return program


def sequence(model: Function) -> str:
    """The dim along which tokens follow each other, or empty if there is none such."""
    for given, kind in zip(model.inputs, model.types, strict=False):
        others = [name for name in kind.names if name != BATCH]
        if given.role == "data" and kind.index and BATCH in kind.names and len(others) == 1:
            return others[0]
    return ""


def meeting(function: Function, along: str) -> Iterator[Diagnostic]:
    """The ops in which tokens of one sequence meet, but for attention that can be kept apart."""
    reaching = results_of(function)
    for op in function.ops:
        kinds = [function.types[value] for value in op.operands]
        reason = _reason(op.attrs, kinds, along)
        if reason and any(value in reaching for value in op.results):
            yield DocumentsMeet(op.span, op.path or op.kind, reason)


def results_of(function: Function) -> set[int]:
    """The values that anything but the sum of penalties depends on."""
    kept = zip(function.results, function.outputs, strict=True)
    found = {value for value, name in kept if name != PENALTY}
    for op in reversed(function.ops):
        # A stack hands on the sum of penalties as one of its carries; its body is looked at apart.
        if not found.isdisjoint(op.results):
            found.update(op.operands)
    return found


def _reason(attrs: Attrs, kinds: list[Type], along: str) -> str:
    if isinstance(attrs, Attend):
        return _attention(attrs, kinds, along)
    held = any(along in kind.names for kind in kinds)
    if isinstance(attrs, Reduce) and along in attrs.dims and held:
        return f"takes all of `{along}` together"
    if isinstance(attrs, Dot) and along in attrs.contract:
        return f"adds up over `{along}`"
    if isinstance(attrs, Rename) and along in dict(attrs.pairs) and held:
        return f"gives `{along}` another name, so tokens can meet"
    if isinstance(attrs, Conv) and along in attrs.along:
        return f"slides along `{along}`"
    if getattr(attrs, "along", "") == along and not isinstance(attrs, BY_TOKEN):
        return f"runs along `{along}`"
    return ""


def _attention(attrs: Attend, kinds: list[Type], along: str) -> str:
    if along not in (attrs.along, attrs.over):
        return ""
    if attrs.along != attrs.over:
        return f"attends from `{attrs.along}` to `{attrs.over}`"
    if attrs.mask != "causal":
        return "attends without a causal mask"
    rest = set(kinds[0].names) - {attrs.heads, attrs.dim, along}
    return "" if rest == {BATCH} else f"attends once for each of {', '.join(sorted(rest))}"


class Apart(Struct):
    """One function rewritten; `given` are the fields that functions before it take."""

    program: Program
    function: Function
    along: str
    given: dict[str, tuple[str, ...]]

    def run(self) -> tuple[Function, tuple[str, ...]]:
        """The function, and which of the fields it takes now."""
        function, program = self.function, self.program
        fields = tuple(
            field for field in FIELDS if any(field in self.needs(op) for op in function.ops)
        )
        if not fields:
            return function, ()
        b = Builder(function.name, program.sizes, program.signatures)
        mapping = {
            number: b.input(given.name, function.types[number], given.role)
            for number, given in enumerate(function.inputs)
        }
        role = "data" if function.name == MODEL else "value"
        taken = {given.name for given in function.inputs}
        kind = indices(self.along, BATCH, self.along)
        values = {
            field: b.input(f"data.{field}" if field in taken else field, kind, role)
            for field in fields
        }
        for op in function.ops:
            b.path, b.span = op.path, op.span
            operands = [mapping[value] for value in op.operands]
            found = self.emit(b, op, operands, values)
            mapping.update(zip(op.results, found, strict=True))
        results = [self.as_before(b, mapping[value], value) for value in function.results]
        return b.finish(results, function.outputs, function.span), fields

    def needs(self, op: Op) -> tuple[str, ...]:
        """The fields that an op asks for."""
        match op.attrs:
            case Attend(along=along) if along == self.along:
                return (STARTS,)
            case Iota() if op.attrs == Iota(op.attrs.dim) and op.attrs.dim.name == self.along:
                return (POSITIONS,)
            case Scan(function=name):
                return self.given[name]
            case _:
                return ()

    def emit(
        self, b: Builder, op: Op, operands: list[int], values: dict[str, int]
    ) -> tuple[int, ...]:
        """The op with what it needs."""
        needed = [values[field] for field in self.needs(op)]
        if isinstance(op.attrs, Iota) and needed:
            return tuple(needed)
        if isinstance(op.attrs, Attend) and needed:
            return b.emit(structs.replace(op.attrs, documents=True), *operands, *needed)
        if isinstance(op.attrs, Scan):
            function = self.program.function(op.attrs.function)
            fitted = [self.as_taken(b, v, function, n) for n, v in enumerate(operands)]
            return b.emit(op.attrs, *fitted, *needed)
        return b.emit(op.attrs, *operands)

    def as_taken(self, b: Builder, value: int, function: Function, number: int) -> int:
        """An operand of a stack in the order of dims in which its body takes it."""
        wanted = function.types[number].names
        have = b.types[value].names
        same = set(have) == set(wanted) and have != wanted
        return b.one(Transpose(wanted), value) if same else value

    def as_before(self, b: Builder, value: int, old: int) -> int:
        """A result in the order of dims that it had."""
        wanted, have = self.function.types[old].names, b.types[value].names
        same = set(have) == set(wanted) and have != wanted
        return b.one(Transpose(wanted), value) if same else value
