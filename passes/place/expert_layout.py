"""Where dims of a mixture of experts are: an axis holds tokens in one value, experts in another.

Experts yield to tokens on their axes: scores of [batch, seq, experts] stay with the tokens. In
expert layout (a value with rows or slots of experts) they do not: the rows, or the experts, are on
these axes, and whatever else was leaves them. The collectives between follow: all rows go to the
ranks of their experts and come back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import Protocol, TypeVar

from msgspec import Struct, structs

from fllmc.ir.ops import Dispatch
from fllmc.ir.program import DimSize, Program
from fllmc.ir.types import Mesh, bare

Axes = Mapping[str, tuple[str, ...]]


class ExpertDims(Struct, frozen=True):
    """The axes of each dim of experts, and of each dim of rows; `slots` mark expert layout."""

    experts: Axes = {}
    rows: Axes = {}
    slots: tuple[str, ...] = ()

    def settle(self, axes: Axes, names: Iterable[str], whole: Iterable[str]) -> Axes:
        """The axes of dims that stand together, with those of experts and rows."""
        given, fixed = tuple(names), tuple(whole)
        if not any(name in self.experts or name in self.rows for name in given):
            return axes
        if any(name in self.rows or name in self.slots for name in given):
            return self.dispatched(axes, given)
        found = dict(axes)
        taken = {bare(axis) for name in given for axis in axes.get(name, ())}
        for name in given:
            if name in self.experts and name not in fixed:
                found[name] = tuple(axis for axis in self.experts[name] if axis not in taken)
        return found

    def dispatched(self, axes: Axes, names: Sequence[str]) -> Axes:
        """The axes of dims in expert layout."""
        own = {name: {**self.rows, **self.experts}[name] for name in names if self.has(name)}
        taken = {axis for on in own.values() for axis in on}
        rest = {name: tuple(a for a in on if bare(a) not in taken) for name, on in axes.items()}
        return {**rest, **own}

    def has(self, name: str) -> bool:
        """Whether the dim is one of experts or of their rows."""
        return name in self.rows or name in self.experts


def expert_dims(program: Program, axes: Axes) -> ExpertDims:
    """The dims of a program's mixtures of experts, for the axes that directives put dims on."""
    experts: dict[str, tuple[str, ...]] = {}
    rows: dict[str, tuple[str, ...]] = {}
    slots: dict[str, None] = {}
    for function in program.functions:
        for op in function.ops:
            if not isinstance(op.attrs, Dispatch):
                continue
            name = function.types[op.operands[1]].index
            if not axes.get(name):
                continue
            experts[name] = axes[name]
            if len(op.attrs.to) == 1:
                rows[op.attrs.to[0].name] = axes[name]
            else:
                slots[op.attrs.to[1].name] = None
    return ExpertDims(experts, rows, tuple(slots))


class Reason(Protocol):
    """A dim is on an axis."""

    @property
    def dim(self) -> str:
        """The dim."""
        ...

    @property
    def axis(self) -> str:
        """The axis."""
        ...


R = TypeVar("R", bound=Reason)


def apart(
    program: Program, canonical: Axes, elsewhere: Sequence[R]
) -> tuple[ExpertDims, dict[str, tuple[str, ...]], list[R]]:
    """(dims of experts on their axes, what places the other dims, and what of them yields)."""
    every = dict(canonical)
    for reason in elsewhere:
        every[reason.dim] = (*every.get(reason.dim, ()), reason.axis)
    experts = expert_dims(program, every)
    rest = {dim: axes for dim, axes in canonical.items() if dim not in experts.experts}
    return experts, rest, [reason for reason in elsewhere if reason.dim not in experts.experts]


def with_room(program: Program, dims: ExpertDims, mesh: Mesh) -> Program:
    """The program with rows for each group of experts, as many as there are choices.

    A rank that holds some experts then has room for all choices, whatever is chosen: what is
    planned, and moved, is this bound. The rows left over are zeros, and reach no result.
    """
    if not dims.rows:
        return program
    sized = [
        DimSize(each.name, each.size * prod(mesh.extent((axis,)) for axis in dims.rows[each.name]))
        if each.name in dims.rows
        else each
        for each in program.dims
    ]
    return structs.replace(program, dims=tuple(sized))
