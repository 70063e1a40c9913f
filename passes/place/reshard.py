"""Moving a value from one placement to another: the one place that emits collectives.

Each collective on a value is emitted once per function and then shared. The order keeps what is
moved small: partial sums are scattered where they may, then reduced, and gathers come last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from fllmc.ir.build import Builder
from fllmc.ir.ops import AllGather, AllReduce, AnyAttrs, LocalSlice, ReduceScatter
from fllmc.ir.types import Sizes, Type, bare, bare_axes, deals_zigzag
from fllmc.passes.place.directives import Axes

AddedAxes = Mapping[str, tuple[str, ...]]


class Mover:
    """The placed function being built, with the collectives that its values have had so far."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.build = Builder(name, sizes)
        self._steps: dict[tuple[int, AnyAttrs], int] = {}
        self._closed: dict[int, int] = {}

    def kind(self, value: int) -> Type:
        """The value's type."""
        return self.build.types[value]

    def close(self, value: int, keep: Sequence[str] = ()) -> int:
        """The value combined over its open axes, but for those to keep open."""
        kind = self.kind(value)
        axes = tuple(axis for axis in kind.partial if axis not in keep)
        if not axes:
            return value
        done = self._step(value, AllReduce(axes))
        if not self.kind(done).partial:
            self._closed[value] = done
        return done

    def closed_already(self, value: int) -> int | None:
        """The closed form of the value, if some op has needed it before."""
        return self._closed.get(value) if self.kind(value).partial else value

    def move(self, value: int, wanted: Axes, keep: Sequence[str] = ()) -> int:
        """The value with its dims on the wanted axes, open over none but the axes to keep."""
        if self.kind(value).combine == "max":
            value = self.close(value)
        added, removed = self._difference(value, wanted)
        entering = {bare(axis) for axes in added.values() for axis in axes}
        for dim, axes in removed.items():  # an axis leaves one dim before it enters another
            if dim in added or entering.intersection(bare_axes(axes)):
                value = self._whole(value, dim, axes)
        closed = self._shrink(value, added)
        return self._gather(self.close(closed, keep), wanted)

    def _shrink(self, value: int, added: AddedAxes) -> int:
        """The value with further axes on its dims: partial sums are scattered, others cut."""
        for dim, axes in added.items():
            for is_open, run in runs(axes, self.kind(value).partial):
                attrs = ReduceScatter(dim, run) if is_open else LocalSlice(dim, run)
                value = self._step(value, attrs)
        return value

    def _gather(self, value: int, wanted: Axes) -> int:
        _, removed = self._difference(value, wanted)
        for dim, axes in removed.items():
            value = self._whole(value, dim, axes)
        return value

    def _whole(self, value: int, dim: str, axes: tuple[str, ...]) -> int:
        """The value with a dim whole over its innermost axes."""
        for _, run in reversed(list(runs(axes, ()))):
            value = self._step(value, AllGather(dim, run))
        return value

    def _difference(self, value: int, wanted: Axes) -> tuple[AddedAxes, AddedAxes]:
        """The axes that each dim lacks and those that it has beside the wanted ones."""
        added: dict[str, tuple[str, ...]] = {}
        removed: dict[str, tuple[str, ...]] = {}
        for dim in self.kind(value).dims:
            target = wanted.get(dim.name, ())
            shared = shared_prefix(dim.axes, target)
            if target[shared:]:
                added[dim.name] = target[shared:]
            if dim.axes[shared:]:
                removed[dim.name] = dim.axes[shared:]
        return added, removed

    def _step(self, value: int, attrs: AnyAttrs) -> int:
        found = self._steps.get((value, attrs))
        if found is None:
            found = self._steps[(value, attrs)] = self.build.one(attrs, value)
        return found


def runs(axes: Iterable[str], partial: Sequence[str]) -> Iterator[tuple[bool, tuple[str, ...]]]:
    """The axes in order, grouped by whether the value is open over them and how they deal."""
    for (is_open, _), run in groupby(
        axes, lambda axis: (bare(axis) in partial, deals_zigzag((axis,)))
    ):
        yield is_open, tuple(run)


def shared_prefix(a: Sequence[str], b: Sequence[str]) -> int:
    """How many axes, counted from the outermost, are the same."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count
