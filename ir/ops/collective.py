"""Collectives: the only ops through which ranks see each other's values, and the local slice."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.ops.attention import RingAttend, RingAttendGrad
from fllmc.ir.ops.base import Attrs, Env, distinct, merged, require
from fllmc.ir.ops.experts import ExchangeRows
from fllmc.ir.types import Dim, Type, bare_axes, deals_zigzag


def replace_dim(kind: Type, new: Dim) -> Type:
    """The type with the dim of that name placed as `new`."""
    return kind.placed(distinct(tuple(new if d.name == new.name else d for d in kind.dims)))


def dealt_alike(axes: Sequence[str]) -> None:
    """Check that all axes of a collective, or none, deal in zig-zag."""
    require(len({deals_zigzag((axis,)) for axis in axes}) <= 1, f"{axes} deal differently")


class AllReduce(Attrs, frozen=True, tag="all_reduce"):
    """Combine partial values over axes by the type's sum or maximum; all ranks get the result.

    Where only the ranks at some positions of a single axis hold the value, `among` lists them.
    """

    axes: tuple[str, ...]
    among: tuple[int, ...] = ()

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(set(self.axes) <= set(kind.partial), f"{kind} is not open over {self.axes}")
        left = tuple(axis for axis in kind.partial if axis not in self.axes)
        combine = kind.combine if left else "sum"
        return (msgspec.structs.replace(kind, partial=left, combine=combine),)


class AllGather(Attrs, frozen=True, tag="all_gather"):
    """Make a dim whole over its innermost axes: every rank gets all parts, in order."""

    dim: str
    axes: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        have = kind.axes_of(self.dim)
        require(
            have[len(have) - len(self.axes) :] == self.axes, f"{kind}: not divided by {self.axes}"
        )
        dealt_alike(self.axes)
        return (replace_dim(kind, Dim(self.dim, have[: len(have) - len(self.axes)])),)


class ReduceScatter(Attrs, frozen=True, tag="reduce_scatter"):
    """Sum partial values over axes and give each rank its part of a dim."""

    dim: str
    axes: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        axes = bare_axes(self.axes)
        require(set(axes) <= set(kind.partial), f"{kind} is not open over {axes}")
        require(kind.combine == "sum", "only sums are scattered")
        dealt_alike(self.axes)
        left = tuple(axis for axis in kind.partial if axis not in axes)
        closed = msgspec.structs.replace(kind, partial=left)
        return (replace_dim(closed, Dim(self.dim, (*kind.axes_of(self.dim), *self.axes))),)


class AllToAll(Attrs, frozen=True, tag="all_to_all"):
    """Move axes from one dim to another: `gathered` is whole over them, `scattered` is divided.

    They are the innermost axes of either. Each rank keeps a part of what it has, and sends others
    theirs.
    """

    gathered: str
    scattered: str
    axes: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(not deals_zigzag(self.axes), f"{self.axes} deal in zig-zag")
        whole = AllGather(self.gathered, self.axes).infer(operands, env)
        return LocalSlice(self.scattered, self.axes).infer(whole, env)


class LocalSlice(Attrs, frozen=True, tag="local_slice"):
    """Keep this rank's part of a dim over further axes. No communication."""

    dim: str
    axes: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        dealt_alike(self.axes)
        return (replace_dim(kind, Dim(self.dim, (*kind.axes_of(self.dim), *self.axes))),)


class Share(Attrs, frozen=True, tag="share"):
    """What ranks hold along axes, as terms of a sum over them. No communication.

    Pipeline stages compute different things; where the whole is the sum of what each has, this says
    so, and from there on the type keeps the sum from being forgotten.
    """

    axes: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(kind.combine == "sum", "a partial maximum can't be a term of a sum")
        require(not set(self.axes) & {*kind.axes, *kind.partial}, f"{kind} is on {self.axes}")
        return (msgspec.structs.replace(kind, partial=merged(kind.partial, self.axes)),)


class Coalesced(Attrs, frozen=True, tag="coalesced"):
    """Several collectives of one kind over the same axes as one call, on values of one dtype.

    `collective` is `all_gather`, `all_reduce` or `reduce_scatter`. `dims` has the dim of each
    gather or scatter, and is empty for reductions.
    """

    collective: str
    axes: tuple[str, ...]
    dims: tuple[str, ...] = ()
    arity = -1

    def each(self, count: int) -> tuple[AllGather | AllReduce | ReduceScatter, ...]:
        """The collective that each operand has."""
        if self.collective == "all_reduce":
            return (AllReduce(self.axes),) * count
        cls = AllGather if self.collective == "all_gather" else ReduceScatter
        return tuple(cls(dim, self.axes) for dim in self.dims)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        known = ("all_gather", "all_reduce", "reduce_scatter")
        require(self.collective in known, f"no collective is called {self.collective}")
        require(len(operands) > 0, "nothing to move")
        parts = self.each(len(operands))
        require(len(parts) == len(operands), f"{len(operands)} operands for {len(parts)} dims")
        require(len({(k.dtype, k.combine) for k in operands}) == 1, "operands differ in dtype")
        require(not deals_zigzag(self.axes), "what is dealt in zig-zag is moved by itself")
        pairs = zip(parts, operands, strict=True)
        return tuple(kind for part, given in pairs for kind in part.infer([given], env))


COLLECTIVES = (
    AllReduce,
    AllGather,
    AllToAll,
    ExchangeRows,
    ReduceScatter,
    RingAttend,
    RingAttendGrad,
    Coalesced,
)
