"""Reverse mode over a flat function: cotangents gathered from the last op to the first.

The same walk serves the entry, where gradient ops follow the forward ops in one function, and the
body of a scan, where they go to a function of their own that gets what it needs of the forward
values as slices: residuals that the forward scan stacks, the stacked parameters, shared values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Add, AddN, Env, Fill, Scan, Transpose
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Type

Get = Callable[[int], int]
Cotangents = Sequence[int | None]


class Reverse:
    """The state of one walk. Values of the forward function are named by their forward numbers."""

    def __init__(self, forward: Function, wanted: set[int], b: Builder, get: Get):
        self.forward = forward
        self.wanted = wanted
        self.b = b
        self.get = get
        self.env = Env(b.sizes, b.functions)
        self.contributions: dict[int, list[int]] = {}
        self.scans: dict[int, ScanGradient] = {}

    def kind(self, value: int) -> Type:
        """The type of a forward value."""
        return self.forward.types[value]

    def wants(self, value: int) -> bool:
        """Whether a trained parameter has a part in the value."""
        return value in self.wanted

    def give(self, value: int, contribution: int, narrow: bool = False) -> None:
        """Add to the cotangent of a value, summed over dims that the value lacks.

        A contribution that lacks a dim of the op's result stands for equal numbers along it. Where
        the operand lacks that dim too, the sum is the number times the dim's size: `narrow` says
        that the rule has no such dims.
        """
        have = self.b.types[contribution].names
        over = [name for name in have if name not in self.kind(value).names]
        if not narrow:
            contribution = self.b.sum(contribution, over)
        self.contributions.setdefault(value, []).append(contribution)

    def cotangent(self, value: int) -> int | None:
        """All contributions added up; None when there are none."""
        found = self.contributions.get(value, [])
        if len(found) > 1:
            total = self.b.one(Add() if len(found) == 2 else AddN(), *found)
            self.contributions[value] = found = [total]
        return found[0] if found else None

    def exact(self, value: int, cotangent: int | None) -> int:
        """A cotangent with the dims and layout of its value; zeros for None."""
        wanted = self.kind(value)
        if cotangent is None:
            return self.b.zeros(wanted)
        have = self.b.types[cotangent]
        missing = [dim for dim in wanted.dims if dim.name not in have.names]
        if missing:
            ones = self.b.one(Fill(1.0, wanted.dtype, wanted.dims))
            cotangent = self.b.mul(ones, cotangent)
        if self.b.types[cotangent].names != wanted.names:
            cotangent = self.b.one(Transpose(wanted.names), cotangent)
        return cotangent

    def walk(self, rules: Mapping[type, Callable[[Reverse, Op, Cotangents], None]]) -> None:
        """Run the rule of every op that has a cotangent and a wanted operand, last op first."""
        for op in reversed(self.forward.ops):
            if not any(self.wants(value) for value in op.operands):
                continue
            found = [self.cotangent(value) for value in op.results]
            if all(value is None for value in found):
                continue
            self.b.path, self.b.span = op.path, op.span
            found = [
                None if value is None else self.widened(op, result, value)
                for result, value in zip(op.results, found, strict=True)
            ]
            if type(op.attrs) not in rules:
                raise InternalError(f"{op.kind} has no gradient rule")
            rules[type(op.attrs)](self, op, found)

    def widened(self, op: Op, result: int, cotangent: int) -> int:
        """The cotangent with the dims that some operand lacks, which its rule sums over."""
        have = self.b.types[cotangent].names
        lost = [
            name
            for name in self.kind(result).names
            if name not in have and any(name not in self.kind(v).names for v in op.operands)
        ]
        return self.exact(result, cotangent) if lost else cotangent

    def reversed_scan(self, op: Op, cotangents: Cotangents) -> None:
        """Emit the reversed scan and hand its results to the operands."""
        made = self.scans[op.results[0]]
        attrs = op.attrs
        assert isinstance(attrs, Scan)
        carried = [self.exact(op.results[k], cotangents[k]) for k in made.carries]
        sums = [self.b.zeros(self.kind(op.operands[k])) for k in made.shared]
        slices = [
            *(self.get(made.stacked[v]) if v in made.stacked else self.get(op.operands[v])
              for v in made.slices),
            *(self.exact(op.results[k], cotangents[k]) for k in made.incoming),
        ]  # fmt: skip
        rest = [self.get(op.operands[k]) for k in made.constants]
        back = Scan(
            made.function.name, attrs.over, len(carried) + len(sums), len(slices), not attrs.reverse
        )
        results = self.b.emit(back, *carried, *sums, *slices, *rest)
        targets = [*made.carries, *made.shared, *made.stacked_gradients]
        for position, value in zip(targets, results, strict=True):
            if self.wants(op.operands[position]):
                self.give(op.operands[position], value)


class ScanGradient(msgspec.Struct):
    """The backward function of a scan and what it is given, by the forward body's input numbers.

    `carries` need a cotangent; `shared` values get their gradient as further carries; `slices` are
    forward values: residuals or stacked inputs; `incoming` are stacked results with a cotangent;
    `constants` are shared inputs. `stacked` maps a residual to its stacked value in the caller, and
    `stacked_gradients` are the slices whose gradient is a stacked result.
    """

    function: Function
    forward: Function
    residuals: list[int]
    carries: list[int]
    shared: list[int]
    slices: list[int]
    incoming: list[int]
    constants: list[int]
    stacked_gradients: list[int]
    stacked: dict[int, int]
