"""Values of the evaluator: one array a rank, how they make one global array, and the collectives.

A value's parts are listed by rank. A rank's part holds the stretch of each divided dim that the
rank's position on the dim's axes gives; along all other axes the parts are equal (replicas) or,
for partial values, still to be combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import AllGather, AllReduce, LocalSlice, ReduceScatter
from fllmc.ir.types import Dim, Mesh, Sizes, Type

Array: TypeAlias = npt.NDArray[Any]
Parts: TypeAlias = tuple[Array, ...]

REPLICA_TOLERANCE = 1e-12


class Here(NamedTuple):
    """Where a rule runs: the op's types, the sizes, and the rank's coordinates on the mesh."""

    operands: tuple[Type, ...]
    results: tuple[Type, ...]
    sizes: Sizes
    coordinates: Mapping[str, int]

    def extent(self, dim: Dim) -> int:
        """The length of this rank's stretch of the dim."""
        return self.sizes.size(dim.name) // self.sizes.mesh.extent(dim.axes)

    def first(self, dim: Dim) -> int:
        """The global position at which this rank's stretch of the dim begins."""
        return self.sizes.mesh.position(self.coordinates, dim.axes) * self.extent(dim)

    def positions(self, dim: Dim) -> npt.NDArray[np.int64]:
        """The global positions of this rank's stretch of the dim."""
        return np.arange(self.extent(dim), dtype=np.int64) + self.first(dim)


def as_stored(kind: Type, value: object) -> Array:
    """The value as the evaluator holds it: float64, int64 or bool."""
    dtype = np.float64 if kind.is_float else np.bool_ if kind.dtype == "bool" else np.int64
    return np.asarray(value, dtype=dtype)


def region(kind: Type, sizes: Sizes, rank: int) -> tuple[slice, ...]:
    """The stretch of each dim that the rank holds, as an index into the global array."""
    here = Here((), (), sizes, sizes.mesh.coordinates(rank))
    return tuple(slice(here.first(d), here.first(d) + here.extent(d)) for d in kind.dims)


def split(array: Array, kind: Type, sizes: Sizes) -> Parts:
    """Each rank's part of a global array."""
    return tuple(array[region(kind, sizes, rank)] for rank in range(sizes.mesh.size))


def join(parts: Parts, kind: Type, sizes: Sizes) -> Array:
    """The global array of resolved parts; InternalError when replicas differ.

    Replicas may differ by REPLICA_TOLERANCE of the largest magnitude in the array.
    """
    if kind.partial:
        raise InternalError(f"{kind} is an unresolved partial value")
    whole = np.empty(sizes.shape(kind), dtype=parts[0].dtype)
    for rank in reversed(range(len(parts))):
        whole[region(kind, sizes, rank)] = parts[rank]
    scale = float(np.max(np.abs(whole), initial=0.0, where=np.isfinite(whole)))
    for rank, part in enumerate(parts):
        held = whole[region(kind, sizes, rank)]
        if not np.allclose(part, held, rtol=0.0, atol=REPLICA_TOLERANCE * scale, equal_nan=True):
            raise InternalError(f"replicas of {kind} differ on rank {rank}")
    return whole


def combine(kind: Type, arrays: Sequence[Array]) -> Array:
    """The sum or maximum of partial values, in rank order."""
    return reduce(np.add if kind.combine == "sum" else np.maximum, arrays)


def all_reduce(attrs: AllReduce, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets its group's combined value."""
    found: dict[int, Array] = {}
    for group in mesh.groups(attrs.axes):
        total = combine(kind, [parts[rank] for rank in group])
        found.update(dict.fromkeys(group, total))
    return tuple(found[rank] for rank in range(mesh.size))


def all_gather(attrs: AllGather, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets its group's parts, put one behind the other along the dim."""
    found: dict[int, Array] = {}
    position = kind.names.index(attrs.dim)
    for group in mesh.groups(attrs.axes):
        whole = np.concatenate([parts[rank] for rank in group], axis=position)
        found.update(dict.fromkeys(group, whole))
    return tuple(found[rank] for rank in range(mesh.size))


def reduce_scatter(attrs: ReduceScatter, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets its part of its group's combined value."""
    summed = all_reduce(AllReduce(attrs.axes), kind, parts, mesh)
    return local_slice(LocalSlice(attrs.dim, attrs.axes), kind, summed, mesh)


def local_slice(attrs: LocalSlice, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank keeps the part of the dim that its position among the axes gives."""
    position, count = kind.names.index(attrs.dim), mesh.extent(attrs.axes)
    return tuple(
        np.split(part, count, axis=position)[mesh.position(mesh.coordinates(rank), attrs.axes)]
        for rank, part in enumerate(parts)
    )
