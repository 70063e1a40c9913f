"""Where dims of a mixture of experts are: an axis holds tokens in one value, experts in another.

Experts yield to tokens on their axes: scores of [batch, seq, experts] stay with the tokens. In
expert layout (a value with rows or slots of experts) they do not: the rows, or the experts, are on
these axes, and whatever else was leaves them. The collectives between follow: all rows go to the
ranks of their experts and come back. An axis of a sequence, as a context axis is, holds rows of its
own tokens, for routing asks no more than one token.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from msgspec import Struct, structs

from fllmc.ir.ops import Dispatch
from fllmc.ir.program import DimSize, Program
from fllmc.ir.types import Mesh, bare

Axes = Mapping[str, tuple[str, ...]]


class ExpertDims(Struct, frozen=True):
    """Where dims of mixtures of experts are; `rows` and `slots` mark expert layout.

    `rows` are on the axes of the parts of their sequence, then on those of their experts, which
    `groups` has alone; `ragged` if only the rows in use are moved. `parts` are the axes that divide
    the tokens of a sequence, each part with rows of its own. `slots`, which only whole sequences
    fill, are divided among the same axes.
    """

    experts: Axes = {}
    rows: Axes = {}
    groups: Axes = {}
    slots: Axes = {}
    parts: Axes = {}
    ragged: bool = False

    def settle(self, axes: Axes, names: Iterable[str], whole: Iterable[str]) -> Axes:
        """The axes of dims that stand together, with those of experts and rows."""
        given, fixed = tuple(names), tuple(whole)
        if not any(self.has(name) for name in given):
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
        """The axes of dims in expert layout; parts of sequences stay where they are."""
        every = {**self.rows, **self.experts, **self.slots}
        own = {name: every[name] for name in names if self.has(name)}
        taken = {axis for on in own.values() for axis in on}
        rest = {
            name: tuple(
                a for a in on if bare(a) not in taken or bare(a) in self.parts.get(name, ())
            )
            for name, on in axes.items()
        }
        return {**rest, **own}

    def has(self, name: str) -> bool:
        """Whether the dim is one of experts, of their rows or of their slots."""
        return name in self.rows or name in self.experts or name in self.slots

    def divides(self, name: str) -> tuple[str, ...]:
        """The axes on which rows are for parts of their sequence."""
        on = self.rows.get(name, ())
        return on[: len(on) - len(self.groups.get(name, ()))]


def expert_dims(program: Program, axes: Axes, tokens: Axes, mesh: Mesh) -> ExpertDims:
    """The dims of a program's mixtures of experts, for the axes that directives put dims on.

    `tokens` are those of directives without `elsewhere`, which alone divide sequences here.
    """
    found = [
        (op.attrs, function.types[op.operands[1]].index)
        for function in program.functions
        for op in function.ops
        if isinstance(op.attrs, Dispatch)
    ]
    experts = {name: axes[name] for _, name in found if axes.get(name)}
    held = {axis for on in experts.values() for axis in on}
    parts = {
        attrs.along: tuple(axis for axis in tokens.get(attrs.along, ()) if axis not in held)
        for attrs, _ in found
    }
    rows: dict[str, tuple[str, ...]] = {}
    groups: dict[str, tuple[str, ...]] = {}
    slots: dict[str, tuple[str, ...]] = {}
    for attrs, name in found:
        divide, own = parts[attrs.along], experts.get(name, ())
        last = attrs.to[-1].name
        if not divide and not own:
            continue
        if len(attrs.to) == 1:
            rows[last], groups[last] = (*divide, *own), own
        else:
            fits = program.sizes.size(last) % mesh.extent(divide) == 0
            slots[last] = divide if fits else ()
    return ExpertDims(experts, rows, groups, slots, {dim: on for dim, on in parts.items() if on})


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
    program: Program, canonical: Axes, elsewhere: Sequence[R], mesh: Mesh
) -> tuple[ExpertDims, dict[str, tuple[str, ...]], list[R]]:
    """(dims of experts on their axes, what places the other dims, and what of them yields)."""
    every = dict(canonical)
    for reason in elsewhere:
        every[reason.dim] = (*every.get(reason.dim, ()), reason.axis)
    experts = expert_dims(program, every, canonical, mesh)
    rest = {dim: axes for dim, axes in canonical.items() if dim not in experts.experts}
    return experts, rest, [reason for reason in elsewhere if reason.dim not in experts.experts]


def with_room(program: Program, dims: ExpertDims, mesh: Mesh) -> Program:
    """The program with rows for each group of experts, as many as there are choices.

    A rank that holds some experts then has room for all choices, whatever is chosen: what is
    planned, and moved, is this bound. The rows left over are zeros, and reach no result.
    """
    if not dims.groups:
        return program
    sized = [
        DimSize(each.name, each.size * mesh.extent(dims.groups[each.name]))
        if each.name in dims.groups
        else each
        for each in program.dims
    ]
    packed = [
        DimSize(packed_rows(each.name), each.size)
        for each in program.dims
        if dims.ragged and dims.groups.get(each.name)
    ]
    return structs.replace(program, dims=(*sized, *packed))


def packed_rows(rows: str) -> str:
    """The dim of the rows at their tokens: as many as there are choices."""
    return f"{rows}.packed"
