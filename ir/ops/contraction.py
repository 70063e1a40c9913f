"""Ops that contract, reduce or index along named dims."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.ops.base import (
    Attrs,
    Env,
    TypeRuleError,
    distinct,
    in_one_stretch,
    joint_dtype,
    linear_in_one,
    merged,
    require,
)
from fllmc.ir.types import Dim, Type


class Dot(Attrs, frozen=True, tag="dot"):
    """The sum over the contracted dims of a * b.

    Dims that both have and that are not contracted are batch dims. The result's dims are the batch
    dims in a's order, then a's own, then b's own. Dividing a contracted dim leaves a partial sum.
    """

    contract: tuple[str, ...]
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        a, b = operands
        open_axes: tuple[str, ...] = linear_in_one(operands, (0, 1))
        for name in self.contract:
            require(name in a.names and name in b.names, f"{name} is not in both {a} and {b}")
            require(a.axes_of(name) == b.axes_of(name), f"{name} is placed differently: {a}, {b}")
            open_axes = merged(open_axes, a.axes_of(name))
        batch = [dim for dim in a.dims if dim.name in b.names and dim.name not in self.contract]
        for dim in batch:
            require(dim == b.dim(dim.name), f"{dim.name} is placed differently: {a}, {b}")
        own_a = [dim for dim in a.dims if dim.name not in b.names]
        own_b = [dim for dim in b.dims if dim.name not in a.names]
        dims = distinct((*batch, *own_a, *own_b))
        return (Type(joint_dtype(operands), dims, open_axes),)


class Reduce(Attrs, frozen=True):
    """Base of the reductions over named dims."""

    dims: tuple[str, ...]


class ReduceSum(Reduce, frozen=True, tag="sum"):
    """The sum over the named dims."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(all(name in kind.names for name in self.dims), f"{kind} lacks one of {self.dims}")
        require(not kind.partial or kind.combine == "sum", "a partial maximum can't be summed")
        divided = tuple(axis for name in self.dims for axis in kind.axes_of(name))
        return (
            msgspec.structs.replace(kind.without(self.dims), partial=merged(kind.partial, divided)),
        )


class ReduceMax(Reduce, frozen=True, tag="max"):
    """The maximum over the named dims; dividing one of them leaves a partial maximum."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(all(name in kind.names for name in self.dims), f"{kind} lacks one of {self.dims}")
        require(not kind.partial, "max needs a resolved operand")
        divided = merged(tuple(axis for name in self.dims for axis in kind.axes_of(name)))
        combine = "max" if divided else "sum"
        result = kind.without(self.dims)
        return (msgspec.structs.replace(result, partial=divided, combine=combine),)


def index_operand(index: Type, dim: str) -> None:
    """Check that a type holds resolved indices of `dim`."""
    if index.index != dim:
        raise TypeRuleError(f"{index} does not hold indices of {dim}")


class Take(Attrs, frozen=True, tag="take"):
    """table[index]: (table[dim, ...rest], index of dim [...]) -> [...index dims, ...rest].

    With `dim` divided, ranks give zeros for the positions that they do not hold: a partial sum.
    """

    dim: str
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        table, index = operands
        index_operand(index, self.dim)
        require(self.dim in table.names, f"{table} has no dim {self.dim}")
        require(not table.partial, "take needs a resolved table")
        in_one_stretch(table.dim(self.dim))
        dims = distinct((*index.dims, *table.without((self.dim,)).dims))
        return (Type(table.dtype, dims, merged(table.axes_of(self.dim))),)


class Put(Attrs, frozen=True, tag="put"):
    """The transpose of take: (index[...], value[...index dims, ...rest]) -> [dim, ...rest].

    Values are added where indices meet. Dividing an index dim leaves a partial sum.
    """

    dim: Dim
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        index, value = operands
        index_operand(index, self.dim.name)
        in_one_stretch(self.dim)
        for dim in index.dims:
            require(dim in value.dims, f"{value} lacks {dim}")
        open_axes = linear_in_one((value,), (0,))
        dims = distinct((self.dim, *value.without(index.names).dims))
        return (Type(value.dtype, dims, merged(open_axes, index.axes)),)


class Reindex(Attrs, frozen=True, tag="reindex"):
    """Indices of another dim as those of `dim`, which is the stretch of it that begins at `first`.

    An index outside of the stretch becomes one outside of `dim`: take gives zero, put drops it.
    """

    dim: str
    first: int

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (index,) = operands
        require(bool(index.index), f"{index} holds no indices")
        require(self.first >= 0, f"{self.first} is no position")
        return (msgspec.structs.replace(index, index=self.dim),)


class Pick(Attrs, frozen=True, tag="pick"):
    """x at positions along dim: (x[..., dim], index of dim) -> [x less dim, what index has more].

    The index has some of x's other dims, and maybe dims of its own, each position of which picks by
    itself. With `dim` divided, the ranks that do not hold the position give zero: a partial sum.
    """

    dim: str
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        x, index = operands
        index_operand(index, self.dim)
        require(self.dim in x.names, f"{x} has no dim {self.dim}")
        require(not x.partial, "pick needs a resolved operand")
        in_one_stretch(x.dim(self.dim))
        require(self.dim not in index.names, f"{index} still has {self.dim}")
        for dim in index.dims:
            fits = dim.name not in x.names or dim in x.dims
            require(fits, f"{dim.name} is placed differently: {x}, {index}")
        more = (dim for dim in index.dims if dim.name not in x.names)
        dims = distinct((*x.without((self.dim,)).dims, *more))
        return (Type(x.dtype, dims, merged(x.axes_of(self.dim))),)


class Spread(Attrs, frozen=True, tag="spread"):
    """The transpose of pick: (value[...], index of dim) -> [..., dim], zero but at the position."""

    dim: Dim
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        value, index = operands
        index_operand(index, self.dim.name)
        in_one_stretch(self.dim)
        for dim in index.dims:
            require(dim in value.dims, f"{value} lacks {dim}")
        partial = linear_in_one((value,), (0,))
        return (Type(value.dtype, distinct((*value.dims, self.dim)), partial),)


class DotAdd(Dot, frozen=True, tag="dot_add"):
    """base + dot(a, b) in one matrix multiplication: (base, a, b) -> as base."""

    arity = 3

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        base, a, b = operands
        (product,) = super().infer((a, b), env)
        require(product == base, f"the product {product} is not as the base {base}")
        return (base,)


class PutAdd(Put, frozen=True, tag="put_add"):
    """base + put(index, value): (base, index, value) -> as base."""

    arity = 3

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        base, index, value = operands
        (placed,) = super().infer((index, value), env)
        require(placed == base, f"the placed values {placed} are not as the base {base}")
        return (base,)
