"""One op being differentiated, and cotangents written out where an op needs a dim."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, Type


def widened(b: Builder, value: int, kind: Type, wanted: Collection[str]) -> int:
    """The value written out along those of the wanted dims of `kind` that it lacks."""
    have = b.types[value].names
    missing = tuple(dim for dim in kind.dims if dim.name in wanted and dim.name not in have)
    if not missing:
        return value
    return b.mul(b.one(ops.Fill(1.0, b.types[value].dtype, missing)), value)


def ordered(b: Builder, value: int, kind: Type) -> int:
    """The value with its dims in the order in which `kind` has them."""
    have = b.types[value].names
    order = tuple(name for name in kind.names if name in have)
    return value if order == have else b.one(ops.Transpose(order), value)


def written_out(b: Builder, value: int, kind: Type) -> int:
    """The value with all dims of `kind`, laid out as it is."""
    return ordered(b, widened(b, value, kind, kind.names), kind)


def zero(b: Builder, kind: Type) -> int:
    """Zeros as a tensor, also of type `f64[]`, where a fill would be a host scalar."""
    if kind.dims or kind.dtype != "f64":
        return b.zeros(kind)
    over = min(b.sizes.dims, key=lambda name: (b.sizes.dims[name], name))
    return b.sum(b.one(ops.Fill(0.0, kind.dtype, (Dim(over),))), (over,))


class Site:
    """One op as its rule sees it. `b` builds the backward function, where `saved` finds values.

    `cotangents` stand for the results of the op, None for those that the loss does not depend on.
    """

    def __init__(
        self,
        b: Builder,
        op: Op,
        types: Sequence[Type],
        saved: Callable[[int], int],
        cotangents: Sequence[int | None],
    ) -> None:
        self.b = b
        self.op = op
        self.cotangents = cotangents
        self.shared: tuple[int, ...] = ()
        self._types = types
        self._saved = saved

    @property
    def dy(self) -> int:
        """The cotangent of the first result, which must have one."""
        found = self.cotangents[0]
        if found is None:
            raise InternalError(f"{self.op.kind} at {self.op.path} is used for a second result")
        return found

    def x(self, position: int) -> int:
        """An operand's value."""
        return self._saved(self.op.operands[position])

    def y(self, position: int = 0) -> int:
        """A result's value."""
        return self._saved(self.op.results[position])

    def kind(self, position: int) -> Type:
        """An operand's type."""
        return self._types[self.op.operands[position]]

    def result(self, position: int = 0) -> Type:
        """A result's type."""
        return self._types[self.op.results[position]]

    def dy_with(self, names: Collection[str]) -> int:
        """The cotangent of the first result, written out along these dims."""
        return ordered(self.b, widened(self.b, self.dy, self.result(), names), self.result())
