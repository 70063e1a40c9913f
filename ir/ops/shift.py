"""A dim read further on, shorter or longer: shifts, cuts, and values set one behind another."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.ops.base import Attrs, Env, distinct, linear_in_one, require
from fllmc.ir.types import Dim, Sizes, Type


class Shift(Attrs, frozen=True, tag="shift"):
    """x[..., dim, ...] -> [..., to, ...]: position p has what `dim` has at p + `by`, else zero.

    So a dim is shifted (`to` is `dim`), a stretch of it cut out (`to` is shorter), or set into a
    longer one. The transpose of a shift is one by as much the other way. An index of what lies
    outside is 0.
    """

    dim: str
    to: str
    by: int

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (x,) = operands
        open_axes = linear_in_one(operands, (0,))
        require(self.dim in x.names, f"{x} has no dim {self.dim}")
        require(not x.axes_of(self.dim), f"shift needs {self.dim} whole: {x}")
        dims = distinct(tuple(Dim(self.to) if d.name == self.dim else d for d in x.dims))
        return (Type(x.dtype, dims, open_axes, index=x.index),)

    def stretches(self, sizes: Sizes) -> tuple[int, int, int]:
        """(first position of `to`, first of `dim`, how many of `dim` come to be in `to`)."""
        room, given = sizes.size(self.to), sizes.size(self.dim)
        first = max(0, -self.by)
        return first, first + self.by, max(0, min(room - first, given - first - self.by))
