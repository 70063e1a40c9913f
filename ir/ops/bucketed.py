"""One run of elementwise work over many tensors that lie one behind another: a bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fllmc.ir.ops.base import Attrs, Env, merged, require
from fllmc.ir.ops.structure import matches, signature
from fllmc.ir.types import Dim, Type

Value = TypeVar("Value")


class Bucketed(Attrs, frozen=True, tag="bucketed"):
    """Do a function's elementwise work on each of several regions, as one run over all of them.

    Operands: `lists` lists, each of a tensor for each of `regions`, which are named after the
    parameter that theirs are of or belong to; then scalars. The tensors of a list, of any
    shapes, lie one behind another without a gap; together they have as many elements as the dim
    `bucket` has positions. The function takes a value over `bucket` for each list, then the
    scalars. What it gives over `bucket` are lists of results, one for each region, that lie in the
    same way; what it gives without dims are sums over all elements of all regions, open over the
    axes that divide them.
    """

    function: str
    bucket: str
    regions: tuple[str, ...]
    lists: int
    arity = -1

    def listed(self, operands: Sequence[Value]) -> list[Sequence[Value]]:
        """The lists of operands, by input of the function."""
        count = len(self.regions)
        return [operands[k * count : (k + 1) * count] for k in range(self.lists)]

    def scalars(self, operands: Sequence[Value]) -> Sequence[Value]:
        """The operands behind the lists."""
        return operands[self.lists * len(self.regions) :]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(bool(self.regions) and self.lists > 0, "no regions")
        require(len(operands) >= len(self.regions) * self.lists, f"{len(operands)} operands")
        found = signature(env, self.function)
        lists = self.listed(operands)
        held = sum(env.sizes.local_elements(kind) for kind in lists[0])
        require(held == env.sizes.size(self.bucket), f"{held} elements for {self.bucket}")
        whole = (Dim(self.bucket),)
        flat = [flattened(kinds, lists[0], whole) for kinds in lists]
        matches([*flat, *self.scalars(operands)], found.inputs, f"{self.function}: input")
        axes = merged(*(kind.axes for kind in lists[0]))
        results: list[Type] = []
        for kind in found.results:
            require(kind.dims in (whole, ()), f"{self.function} gives {kind}")
            if kind.dims:
                results += (Type(kind.dtype, region.dims) for region in lists[0])
                continue
            apart = [str(k) for k in lists[0] if merged(k.axes) != axes]
            require(not apart, f"regions are divided over other axes: {', '.join(apart)}")
            results.append(Type(kind.dtype, (), axes))
        return tuple(results)


def flattened(kinds: Sequence[Type], first: Sequence[Type], dims: tuple[Dim, ...]) -> Type:
    """The type of a list as one flat value; `first` is the list whose dims all have."""
    for kind, other in zip(kinds, first, strict=True):
        require(kind.dims == other.dims, f"regions are {kind} and {other}")
        require(not kind.partial and not kind.index, f"{kind} is no resolved number")
        require(kind.dtype == kinds[0].dtype, f"a list holds {kind} and {kinds[0]}")
    return Type(kinds[0].dtype, dims)
