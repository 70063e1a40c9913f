"""Values of the evaluator: one array a rank, how they make one global array, and the collectives.

A value's parts are listed by rank. A rank's part holds what the rank's place on each divided dim's
axes gives of it (`Sizes.stretches`); along all other axes the parts are equal (replicas) or, for
partial values, still to be combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import AllGather, AllReduce, AllToAll, LocalSlice, ReduceScatter
from fllmc.ir.types import Dim, Mesh, Sizes, Type, bare_axes

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
        """The global positions that this rank holds of the dim, in its order."""
        return positions_in(self.sizes.stretches(dim, self.coordinates))


def positions_in(stretches: Sequence[range]) -> npt.NDArray[np.int64]:
    """All positions of the stretches, one behind the other."""
    return np.concatenate([np.arange(s.start, s.stop, dtype=np.int64) for s in stretches])


def as_stored(kind: Type, value: object) -> Array:
    """The value as the evaluator holds it: float64, int64 or bool."""
    dtype = np.float64 if kind.is_float else np.bool_ if kind.dtype == "bool" else np.int64
    return np.asarray(value, dtype=dtype)


def region(kind: Type, sizes: Sizes, rank: int) -> tuple[Any, ...]:
    """The positions of each dim that the rank holds, as an index into the global array."""
    here = Here((), (), sizes, sizes.mesh.coordinates(rank))
    return np.ix_(*(here.positions(dim) for dim in kind.dims)) if kind.dims else ()


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


def dealt(extent: int, axes: Sequence[str], mesh: Mesh, rank: int) -> npt.NDArray[np.int64]:
    """The positions, of `extent` that axes deal out, which the rank gets."""
    sizes = Sizes({"dim": extent}, mesh)
    return positions_in(sizes.stretches(Dim("dim", tuple(axes)), mesh.coordinates(rank)))


def all_gather(attrs: AllGather, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets its group's parts, each where the axes dealt it from."""
    found: dict[int, Array] = {}
    at = kind.names.index(attrs.dim)
    extent = parts[0].shape[at] * mesh.extent(attrs.axes)
    for group in mesh.groups(attrs.axes):
        joined = np.concatenate([parts[rank] for rank in group], axis=at)
        held = np.concatenate([dealt(extent, attrs.axes, mesh, rank) for rank in group])
        found.update(dict.fromkeys(group, joined.take(np.argsort(held), axis=at)))
    return tuple(found[rank] for rank in range(mesh.size))


def all_to_all(attrs: AllToAll, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets one dim whole, and its part of another."""
    whole = all_gather(AllGather(attrs.gathered, attrs.axes), kind, parts, mesh)
    return local_slice(LocalSlice(attrs.scattered, attrs.axes), kind, whole, mesh)


def reduce_scatter(attrs: ReduceScatter, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank gets its part of its group's combined value."""
    summed = all_reduce(AllReduce(bare_axes(attrs.axes)), kind, parts, mesh)
    return local_slice(LocalSlice(attrs.dim, attrs.axes), kind, summed, mesh)


def local_slice(attrs: LocalSlice, kind: Type, parts: Parts, mesh: Mesh) -> Parts:
    """Every rank keeps what the axes deal it of the dim."""
    at = kind.names.index(attrs.dim)
    return tuple(
        part.take(dealt(part.shape[at], attrs.axes, mesh, rank), axis=at)
        for rank, part in enumerate(parts)
    )
