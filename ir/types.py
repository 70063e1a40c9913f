"""Types of values: a dtype, named dims with their placement on mesh axes, and open partial sums.

A type prints as `bf16[batch@data, seq, heads@tensor, head_dim]+tensor`: each dim by name, the mesh
axes that divide it after `@`, and after the bracket the axes over which the value is still a
partial sum (`+tensor`) or a partial maximum (`^tensor`). A tensor of indices into dim `vocab`
prints as `vocab[batch, seq]` and is stored as i64.

An axis deals a dim out in equal stretches, rank by rank. One written `context~` deals in zig-zag:
the dim is cut into twice as many stretches as there are ranks, and rank r of c holds stretches r
and 2c - 1 - r. So under a causal mask each rank's queries see as many keys (Llama 3, 2024, 3.3.2).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

DTYPE_BYTES: Final[Mapping[str, int]] = {
    "f64": 8,
    "f32": 4,
    "bf16": 2,
    "f16": 2,
    "i64": 8,
    "i32": 4,
    "i8": 1,
    "u8": 1,
    "bool": 1,
}
FLOATS: Final = ("f64", "f32", "bf16", "f16")


ZIGZAG: Final = "~"
"""What ends the name of an axis that deals a dim in zig-zag."""


def bare(axis: str) -> str:
    """The name of the mesh axis, without the mark of how it deals a dim."""
    return axis.removesuffix(ZIGZAG)


def bare_axes(axes: Iterable[str]) -> tuple[str, ...]:
    """The names of the mesh axes."""
    return tuple(bare(axis) for axis in axes)


def deals_zigzag(axes: Iterable[str]) -> bool:
    """Whether one of the axes deals in zig-zag."""
    return any(axis.endswith(ZIGZAG) for axis in axes)


class Dim(msgspec.Struct, frozen=True, gc=False):
    """One dim of a type: its name and the mesh axes that divide it, outermost first.

    Axes may be marked as dealing in zig-zag, as in `seq@context~`.
    """

    name: str
    axes: tuple[str, ...] = ()

    def __str__(self) -> str:
        if not self.axes:
            return self.name
        axes = self.axes[0] if len(self.axes) == 1 else "(" + ", ".join(self.axes) + ")"
        return f"{self.name}@{axes}"


class Type(msgspec.Struct, frozen=True):
    """The type of a value. `index` names the dim whose positions an i64 tensor holds, or is empty.

    `partial` lists, sorted, the mesh axes over which the ranks' values must still be combined (by
    `combine`: sum or max) to give the true value.
    """

    dtype: str
    dims: tuple[Dim, ...] = ()
    partial: tuple[str, ...] = ()
    combine: str = "sum"
    index: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """The dims' names, in layout order."""
        return tuple(dim.name for dim in self.dims)

    @property
    def is_float(self) -> bool:
        """Whether the values are floating-point numbers."""
        return self.dtype in FLOATS

    @property
    def axes(self) -> tuple[str, ...]:
        """All mesh axes that divide some dim, in dim order."""
        return tuple(bare(axis) for dim in self.dims for axis in dim.axes)

    def dim(self, name: str) -> Dim:
        """The dim of that name; KeyError if the type has none."""
        for dim in self.dims:
            if dim.name == name:
                return dim
        raise KeyError(name)

    def axes_of(self, name: str) -> tuple[str, ...]:
        """The axes that divide dim `name`; KeyError if the type has none such."""
        return self.dim(name).axes

    def without(self, names: Iterable[str]) -> Type:
        """The same type less the named dims."""
        drop = frozenset(names)
        return msgspec.structs.replace(
            self, dims=tuple(dim for dim in self.dims if dim.name not in drop)
        )

    def placed(self, dims: Iterable[Dim]) -> Type:
        """The same dtype with these dims instead."""
        return msgspec.structs.replace(self, dims=tuple(dims))

    def unplaced(self) -> Type:
        """The logical type: no axes, no partials."""
        return Type(self.dtype, tuple(Dim(dim.name) for dim in self.dims), index=self.index)

    def __str__(self) -> str:
        head = self.index or self.dtype
        mark = "+" if self.combine == "sum" else "^"
        open_axes = "".join(mark + axis for axis in self.partial)
        return f"{head}[{', '.join(str(dim) for dim in self.dims)}]{open_axes}"


def tensor(dtype: str, *names: str) -> Type:
    """An unplaced tensor type over the named dims."""
    return Type(dtype, tuple(Dim(name) for name in names))


def indices(of: str, *names: str) -> Type:
    """An unplaced tensor of indices into dim `of`."""
    return Type("i64", tuple(Dim(name) for name in names), index=of)


HOST_SCALAR: Final = Type("f64")


def base_dim(name: str) -> str:
    """The declared dim behind a primed one: `embed'` and `embed` have one size."""
    return name.rstrip("'")


class Axis(msgspec.Struct, frozen=True, gc=False):
    """A mesh axis: a named group of devices."""

    name: str
    size: int


class Mesh(msgspec.Struct, frozen=True):
    """The device mesh, row-major: the last axis varies fastest and is innermost."""

    axes: tuple[Axis, ...] = ()

    @property
    def size(self) -> int:
        """Number of devices."""
        total = 1
        for axis in self.axes:
            total *= axis.size
        return total

    def has(self, name: str) -> bool:
        """Whether an axis of that name exists."""
        return any(axis.name == bare(name) for axis in self.axes)

    def extent(self, names: Iterable[str]) -> int:
        """Product of the named axes' sizes."""
        sizes = {axis.name: axis.size for axis in self.axes}
        total = 1
        for name in names:
            total *= sizes[bare(name)]
        return total

    def coordinates(self, rank: int) -> dict[str, int]:
        """The position of `rank` on each axis."""
        found: dict[str, int] = {}
        for axis in reversed(self.axes):
            found[axis.name] = rank % axis.size
            rank //= axis.size
        return {axis.name: found[axis.name] for axis in self.axes}

    def position(self, coordinates: Mapping[str, int], names: Iterable[str]) -> int:
        """The row-major index of these coordinates among the named axes only."""
        sizes = {axis.name: axis.size for axis in self.axes}
        index = 0
        for name in names:
            index = index * sizes[bare(name)] + coordinates[bare(name)]
        return index

    def groups(self, names: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """Ranks that differ only along the named axes, each group in the axes' row-major order."""
        names = bare_axes(names)
        found: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for rank in range(self.size):
            place = self.coordinates(rank)
            key = tuple(place[axis.name] for axis in self.axes if axis.name not in names)
            found.setdefault(key, []).append((self.position(place, names), rank))
        return tuple(tuple(rank for _, rank in sorted(group)) for group in found.values())

    def __str__(self) -> str:
        return ",".join(f"{axis.name}={axis.size}" for axis in self.axes) or "one device"


class Sizes(msgspec.Struct, frozen=True):
    """Sizes of the dims of a program, global and per rank."""

    dims: Mapping[str, int]
    mesh: Mesh = Mesh()

    def size(self, name: str) -> int:
        """The global size of a dim; KeyError if it is not declared."""
        return self.dims[name] if name in self.dims else self.dims[base_dim(name)]

    def shape(self, kind: Type) -> tuple[int, ...]:
        """The global shape of a value of this type."""
        return tuple(self.size(dim.name) for dim in kind.dims)

    def local_shape(self, kind: Type) -> tuple[int, ...]:
        """The shape of one rank's part. Axes divide dims evenly (the placement pass checks it)."""
        return tuple(self.size(dim.name) // self.mesh.extent(dim.axes) for dim in kind.dims)

    def stretches(self, dim: Dim, coordinates: Mapping[str, int]) -> tuple[range, ...]:
        """The global positions of a dim that the rank at these coordinates holds, in its order."""
        held: tuple[range, ...] = (range(self.size(dim.name)),)
        for axis in dim.axes:
            count, rank = self.mesh.extent((axis,)), coordinates[bare(axis)]
            if axis.endswith(ZIGZAG):
                low, high = (
                    _part(held, 2 * count, rank),
                    _part(held, 2 * count, 2 * count - 1 - rank),
                )
                held = _joined((*low, *high))
            else:
                held = _part(held, count, rank)
        return held

    def local_elements(self, kind: Type) -> int:
        """Number of elements of one rank's part."""
        total = 1
        for extent in self.local_shape(kind):
            total *= extent
        return total

    def local_bytes(self, kind: Type) -> int:
        """Bytes of one rank's part."""
        return self.local_elements(kind) * DTYPE_BYTES[kind.dtype]


def _part(held: tuple[range, ...], count: int, number: int) -> tuple[range, ...]:
    """The part of that number, when stretches are put behind one another and cut into `count`."""
    total = sum(len(stretch) for stretch in held)
    start, stop = number * total // count, (number + 1) * total // count
    found: list[range] = []
    for stretch in held:
        part = stretch[max(start, 0) : max(stop, 0)]
        start, stop = start - len(stretch), stop - len(stretch)
        if part:
            found.append(part)
    return tuple(found)


def _joined(held: Iterable[range]) -> tuple[range, ...]:
    """The stretches, those joined that follow one another."""
    found: list[range] = []
    for stretch in held:
        if found and found[-1].stop == stretch.start:
            found[-1] = range(found[-1].start, stretch.stop)
        else:
            found.append(stretch)
    return tuple(found)
