"""One function being placed: its values so far, and the forms in which ops take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

from msgspec import structs

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import (
    Add,
    AddN,
    AnyAttrs,
    Attend,
    Cast,
    Fill,
    Neg,
    Rename,
    Scan,
    Stop,
    Sub,
    Transpose,
)
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes, Type
from fllmc.passes.place.classes import Classes
from fllmc.passes.place.directives import Axes, Layout, placed
from fllmc.passes.place.reshard import Mover

MAY_STAY_OPEN = (Add, AddN, Sub, Neg, Cast, Rename, Transpose, Stop, Scan)


class Constant:
    """Equal elements, which cost nothing to make, so each use gets them placed as it likes.

    Zeros can also be had as an open sum. `made` lists the types in which uses have taken them: of a
    scan's zero accumulator that is tried out, it is the type that it should have.
    """

    def __init__(self, kind: Type, value: float, source: Op | None) -> None:
        self.kind = kind
        self.value = value
        self.source = source
        self.made: dict[Type, int] = {}

    @property
    def may_be_open(self) -> bool:
        """Whether it can be an open sum; a host scalar is a number and never is."""
        return self.value == 0.0 and (bool(self.kind.dims) or self.kind.dtype != "f64")


Value: TypeAlias = "int | Constant"


class Scans(Protocol):
    """What places the bodies of scans."""

    def place_scan(self, site: Site, op: Op, attrs: Scan) -> tuple[int, ...]:
        """The results of a scan in the function of that site."""
        ...


class Site:
    """A function on its way from its source, whose values are looked up by their source numbers."""

    def __init__(
        self, source: Function, name: str, sizes: Sizes, layout: Layout, classes: Classes
    ) -> None:
        self.source = source
        self.layout = layout
        self.classes = classes
        self.mover = Mover(name, sizes)
        self.values: dict[int, Value] = {}
        self._uses: dict[int, list[AnyAttrs | None]] = {}
        for op in source.ops:
            for value in op.operands:
                self._uses.setdefault(value, []).append(op.attrs)
        for value in source.results:
            self._uses.setdefault(value, []).append(None)

    def kind(self, value: int) -> Type:
        """The type of a source value in the form that it has now; constants are closed."""
        found = self.values[value]
        return (
            self.layout.place(found.kind) if isinstance(found, Constant) else self.mover.kind(found)
        )

    def belongs(self, value: int) -> bool:
        """Whether a source value belongs to a parameter."""
        return self.classes.holds(self.source.name, value)

    def home(self, value: int) -> Axes:
        """Where a source value lives: as its parameter is stored, else at its canonical place."""
        axes = self.classes.axes(self.source.name, value)
        return axes_of(self.layout.place(self.source.types[value])) if axes is None else axes

    def place(self, op: Op) -> Axes:
        """Where all dims that an op works on are, as the directives of all of them say.

        The key heads of an attention are where the query heads that use them are. Its sequence does
        not yield, unless that is all that divides it and each rank gathers the keys.
        """
        kinds = [self.source.types[value] for value in (*op.operands, *op.results)]
        names = {name: None for kind in kinds for name in kind.names}
        whole = op.attrs.whole(kinds[: len(op.operands)])
        if not isinstance(op.attrs, Attend):
            return self.layout.axes(names, whole)
        along, over = op.attrs.along, op.attrs.over
        alone = self.layout.context == "gather" and along not in self.layout.canonical
        whole = (*whole, *((over,) if alone and along != over else () if alone else (along, over)))
        apart = {op.attrs.kv_heads} - {op.attrs.heads}
        axes = self.layout.axes((n for n in names if n not in apart), whole)
        return {**axes, op.attrs.kv_heads: axes.get(op.attrs.heads, ())}

    def closed(self, number: int, value: int) -> int:
        """The form `number` of a source value combined: what is open goes to where it lives."""
        known = self.mover.closed_already(number)
        return self.mover.move(number, self.home(value)) if known is None else known

    def used_once(self, value: int) -> bool:
        """Whether a source value has a single use, in an op."""
        uses = self._uses.get(value, ())
        return len(uses) == 1 and uses[0] is not None

    def closes_anyway(self, value: int) -> bool:
        """Whether some use of the value needs it resolved, so that other uses may take that."""
        return any(
            use is not None and not isinstance(use, MAY_STAY_OPEN) for use in self._uses[value]
        )

    def only_summed(self, value: int) -> bool:
        """Whether all uses of the value add it to others."""
        return all(isinstance(use, Add | AddN | Sub) for use in self._uses.get(value, ()))

    def only_cast(self, value: int) -> bool:
        """Whether the value's one use is a cast: it is then summed in the dtype that this gives.

        A gradient that has the dtype in which ranks sum is summed in it.
        """
        if self.source.types[value].dtype == self.layout.reduce:
            return False
        return self.used_once(value) and isinstance(self._uses[value][0], Cast)

    def take(self, value: int, axes: Axes, keep: Sequence[str] = ()) -> int:
        """A source value with its dims on these axes, open over none but the axes to keep."""
        found = self.values[value]
        if isinstance(found, Constant):
            return self.make(found, structs.replace(placed(found.kind, axes), partial=tuple(keep)))
        return self.mover.move(found, axes, keep)

    def as_is(self, value: int) -> int:
        """A source value in the form that it has now."""
        found = self.values[value]
        return (
            self.make(found, self.layout.place(found.kind))
            if isinstance(found, Constant)
            else found
        )

    def make(self, constant: Constant, kind: Type) -> int:
        """The constant in a type."""
        if constant.value != 0.0 and kind.partial:
            raise InternalError(f"{constant.value} can't be an open sum {kind}")
        if kind not in constant.made:
            build = self.mover.build
            outer = build.path, build.span
            if constant.source is not None:
                build.path, build.span = constant.source.path, constant.source.span
            attrs = Fill(constant.value, kind.dtype, kind.dims, kind.partial)
            constant.made[kind] = build.one(attrs)
            build.path, build.span = outer
        return constant.made[kind]

    def emit(self, attrs: AnyAttrs, *operands: int) -> tuple[int, ...]:
        """Add an op to the placed function."""
        return self.mover.build.emit(attrs, *operands)

    def settle(self, op: Op, results: Sequence[Value]) -> None:
        """Record an op's results; what belongs to a parameter goes to where that is stored."""
        for value, found in zip(op.results, results, strict=True):
            axes = self.classes.axes(self.source.name, value)
            if axes is not None and not isinstance(found, Constant) and not self.only_cast(value):
                found = self.mover.move(found, axes, self.mover.kind(found).partial)
            self.values[value] = found

    def result(self, value: int) -> Value:
        """A result of the function, closed if some op has needed it closed."""
        found = self.values[value]
        if isinstance(found, Constant):
            return found
        closed = self.mover.closed_already(found)
        return found if closed is None else closed

    def mark(self, value: int) -> None:
        """Give what is emitted next the path of the op that makes the source value."""
        for op in self.source.ops:
            if value in op.results:
                self.mover.build.path, self.mover.build.span = op.path, op.span


def axes_of(kind: Type) -> Mapping[str, tuple[str, ...]]:
    """The axes that divide each of a type's dims."""
    return {dim.name: dim.axes for dim in kind.dims}
