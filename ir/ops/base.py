"""What every op definition has: attributes that print, a type rule, and the dims it needs whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import msgspec

from fllmc.ir.types import Dim, Sizes, Type, bare, deals_zigzag


class TypeRuleError(Exception):
    """An op's operands do not fit its type rule. The verifier and the builder add the place."""


class Signature(NamedTuple):
    """The types of a function's inputs and results, as `call` and `scan` need them."""

    inputs: tuple[Type, ...]
    results: tuple[Type, ...]


class Env(NamedTuple):
    """What a type rule may look up: dim sizes and the signatures of other functions."""

    sizes: Sizes
    functions: Mapping[str, Signature]


class Attrs(msgspec.Struct, frozen=True, tag_field="op", forbid_unknown_fields=True):
    """The attributes of one kind of op; the class is the op's definition.

    `arity` is the number of operands, or -1 for any number. `infer` gives the result types from the
    operand types or raises TypeRuleError. `whole` names the dims that no axis may divide.
    """

    arity: ClassVar[int] = 1

    @property
    def kind(self) -> str:
        """The op's name in the text form."""
        return str(type(self).__struct_config__.tag)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        """The result types."""
        raise TypeRuleError(f"{self.kind} has no type rule")

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        """Dims of the operands that must not be divided by any axis."""
        return ()


def require(condition: bool, text: str) -> None:
    """Raise TypeRuleError unless the condition holds."""
    if not condition:
        raise TypeRuleError(text)


def union(operands: Sequence[Type]) -> tuple[Dim, ...]:
    """The dims of a broadcast: those of the widest operand, then what the others add.

    A dim that several operands have must be placed alike in all of them.
    """
    widest = max(operands, key=lambda kind: len(kind.dims))
    found = {dim.name: dim for dim in widest.dims}
    for operand in operands:
        for dim in operand.dims:
            known = found.setdefault(dim.name, dim)
            require(known.axes == dim.axes, f"dim {dim.name} is placed as {known} and as {dim}")
    return distinct(tuple(found.values()))


def distinct(dims: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """The same dims, after checking that no name and no axis stands twice."""
    names = [dim.name for dim in dims]
    require(len(set(names)) == len(names), f"a dim stands twice in [{', '.join(names)}]")
    axes = [bare(axis) for dim in dims for axis in dim.axes]
    require(
        len(set(axes)) == len(axes), f"an axis divides two dims of [{', '.join(map(str, dims))}]"
    )
    return dims


def in_one_stretch(dim: Dim) -> None:
    """Check that each rank holds one stretch of the dim, so that its first position says which."""
    require(not deals_zigzag(dim.axes), f"{dim} is dealt in zig-zag")


def merged(*axes: tuple[str, ...]) -> tuple[str, ...]:
    """Axes joined into one sorted tuple, as `Type.partial` keeps them."""
    return tuple(sorted({bare(axis) for group in axes for axis in group}))


def joint_dtype(operands: Sequence[Type]) -> str:
    """The one dtype of the operands; `f64[]` scalars take the dtype of the others."""
    dtypes = {kind.dtype for kind in operands if kind.dims or kind.dtype != "f64"}
    require(len(dtypes) <= 1, f"dtypes differ: {', '.join(sorted(dtypes))}")
    return dtypes.pop() if dtypes else "f64"


def linear_in_one(operands: Sequence[Type], allowed: Sequence[int]) -> tuple[str, ...]:
    """The partial axes of a result that is linear in one operand out of `allowed`."""
    open_operands = [i for i, kind in enumerate(operands) if kind.partial]
    if not open_operands:
        return ()
    require(len(open_operands) == 1, "two operands are unresolved partial values")
    position = open_operands[0]
    require(position in allowed, f"operand {position} is an unresolved partial value")
    require(operands[position].combine == "sum", "a partial maximum must be resolved first")
    return operands[position].partial
