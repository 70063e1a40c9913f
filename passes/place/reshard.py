"""Moving a value from one placement to another: the one place that emits collectives.

A way is a line of collectives from one type to another. Its order keeps what is moved small:
partial sums are scattered where they may, then reduced, and gathers come last. Each form that a
value has had in a function is there for later moves, which start from the nearest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import groupby

from msgspec import Struct

from fllmc.ir.build import Builder
from fllmc.ir.ops import AllGather, AllReduce, AllToAll, AnyAttrs, Env, LocalSlice, ReduceScatter
from fllmc.ir.types import Sizes, Type, bare, bare_axes, deals_zigzag
from fllmc.passes.place.directives import Axes

AddedAxes = Mapping[str, tuple[str, ...]]


class Way(Struct, frozen=True):
    """How a value comes from one form to another: the steps, and the type after each."""

    steps: tuple[tuple[AnyAttrs, Type], ...]

    def end(self, begin: Type) -> Type:
        """The type at the end, for the type at the beginning."""
        return self.steps[-1][1] if self.steps else begin

    def cost(self, begin: Type, sizes: Sizes) -> Fraction:
        """Bytes that one rank sends by ring algorithms; see `step_cost`."""
        kinds = [begin, *(kind for _, kind in self.steps)]
        pairs = zip(kinds, self.steps, strict=False)
        return sum((step_cost(attrs, a, b, sizes) for a, (attrs, b) in pairs), Fraction(0))


def step_cost(attrs: AnyAttrs, given: Type, gives: Type, sizes: Sizes) -> Fraction:
    """Bytes that one rank sends: (n - 1) / n of the whole, twice that for an all-reduce.

    Bandwidth-optimal algorithms (Thakur et al. 2005, sections 4.1 to 4.5).
    """
    if isinstance(attrs, LocalSlice):
        return Fraction(0)
    assert isinstance(attrs, AllGather | AllReduce | AllToAll | ReduceScatter)
    ranks = sizes.mesh.extent(attrs.axes)
    whole = sizes.local_bytes(gives if isinstance(attrs, AllGather) else given)
    turns = 2 if isinstance(attrs, AllReduce) else 1
    return Fraction(turns * whole * (ranks - 1), ranks)


def way(kind: Type, wanted: Axes, keep: Sequence[str], sizes: Sizes) -> Way:
    """From a type to its dims on the wanted axes, open over none but the axes to keep."""
    steps: list[tuple[AnyAttrs, Type]] = []

    def step(attrs: AnyAttrs) -> None:
        nonlocal kind
        (kind,) = attrs.infer((kind,), Env(sizes, {}))
        steps.append((attrs, kind))

    def gather(dim: str, axes: tuple[str, ...]) -> None:
        for _, run in reversed(list(runs(axes, ()))):
            step(AllGather(dim, run))

    if kind.combine == "max" and kind.partial:
        step(AllReduce(kind.partial))
    differences, removed = difference(kind, wanted)
    added = dict(differences)
    entering = {bare(axis) for axes in added.values() for axis in axes}
    for dim, axes in removed.items():  # an axis leaves one dim before it enters another
        others = [to for to, on in added.items() if on == axes and to not in removed]
        if others and dim not in added and not deals_zigzag(axes):
            step(AllToAll(dim, others[0], axes))
            del added[others[0]]
        elif dim in added or entering.intersection(bare_axes(axes)):
            gather(dim, axes)
    for dim, axes in added.items():
        for is_open, run in runs(axes, kind.partial):
            step(ReduceScatter(dim, run) if is_open else LocalSlice(dim, run))
    axes = tuple(axis for axis in kind.partial if axis not in keep)
    if axes:
        step(AllReduce(axes))
    for dim, axes in difference(kind, wanted)[1].items():
        gather(dim, axes)
    return Way(tuple(steps))


class Mover:
    """The placed function being built, with the forms that its values have had so far."""

    def __init__(self, name: str, sizes: Sizes) -> None:
        self.build = Builder(name, sizes)
        self._sizes = sizes
        self._forms: dict[int, dict[Type, int]] = {}

    def kind(self, value: int) -> Type:
        """The value's type."""
        return self.build.types[value]

    def close(self, value: int, keep: Sequence[str] = ()) -> int:
        """The value combined over its open axes, but for those to keep open."""
        axes = {dim.name: dim.axes for dim in self.kind(value).dims}
        return self.move(value, axes, keep)

    def closed_already(self, value: int) -> int | None:
        """A closed form of the value, if some op has needed it before."""
        if not self.kind(value).partial:
            return value
        forms = self._forms.get(value, {})
        return next((number for kind, number in forms.items() if not kind.partial), None)

    def move(self, value: int, wanted: Axes, keep: Sequence[str] = ()) -> int:
        """The value with its dims on the wanted axes, open over none but the axes to keep."""
        kind = self.kind(value)
        goal = way(kind, wanted, keep, self._sizes).end(kind)
        if goal == kind:
            return value
        forms = self._forms.setdefault(value, {kind: value})
        if goal not in forms:
            self._make(forms, goal, wanted, keep)
        return forms[goal]

    def _make(self, forms: dict[Type, int], goal: Type, wanted: Axes, keep: Sequence[str]) -> None:
        """Add the form, and those on the way to it, from whichever form is nearest."""
        ways = [(kind, way(kind, wanted, keep, self._sizes)) for kind in forms]
        fits = [(kind, found) for kind, found in ways if found.end(kind) == goal]
        begin, found = min(fits, key=lambda fit: fit[1].cost(fit[0], self._sizes))
        number = forms[begin]
        for attrs, kind in found.steps:
            if kind not in forms:
                forms[kind] = self.build.one(attrs, number)
                self._forms[forms[kind]] = forms
            number = forms[kind]


def difference(kind: Type, wanted: Axes) -> tuple[AddedAxes, AddedAxes]:
    """The axes that each dim lacks and those that it has beside the wanted ones."""
    added: dict[str, tuple[str, ...]] = {}
    removed: dict[str, tuple[str, ...]] = {}
    for dim in kind.dims:
        target = wanted.get(dim.name, ())
        shared = shared_prefix(dim.axes, target)
        if target[shared:]:
            added[dim.name] = target[shared:]
        if dim.axes[shared:]:
            removed[dim.name] = dim.axes[shared:]
    return added, removed


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
