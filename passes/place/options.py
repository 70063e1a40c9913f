"""The ways in which each op of a placed function could be done instead, as directives allow.

An op that works dim by dim (elementwise, a sum, a cast, a contraction, another order or other names
of dims) can be done wherever its operands can be: where one of them is, where its result is wanted,
with a dim that is placed `elsewhere` on an axis or with another one. Open sums pass through what is
linear in them. An option holds if the op's own type rule takes it, and

- the dims that directives place for all values are where the rules have them,
- the axes that divide the op's work divide it still, so that no rank computes more,
- a cast takes a sum that is open as by the rules, so that it is summed in the same dtype,
- what belongs to a parameter (its casts, gradient and state) is in a form that it has by the rules.

Every other op has the one option that the rules gave it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

from msgspec import Struct, structs

from fllmc.ir import ops
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, Sizes, Type, bare
from fllmc.passes.place.directives import Axes, Layout
from fllmc.passes.place.reading import Reading

FREE = (ops.Elementwise, ops.Dot, ops.ReduceSum, ops.Rename, ops.Transpose)
"""Ops that have a choice."""

MOST_FORMS = 8
"""Forms of a value that are thought of; those that the rules make come first."""

Kinds = tuple[Type, ...]


class Way(Struct, frozen=True):
    """An op's operands and results, each in some form."""

    takes: Kinds
    gives: Kinds


class Options:
    """The options of a function's ops. `fixed` are the roots that belong to parameters."""

    def __init__(
        self, reading: Reading, layout: Layout, sizes: Sizes, fixed: frozenset[int]
    ) -> None:
        self.reading = reading
        self.layout = layout
        self.sizes = sizes
        self.fixed = fixed
        self.pools: dict[int, dict[Type, None]] = {
            root: dict.fromkeys(kinds) for root, kinds in reading.forms.items()
        }
        self.rules = [self._rule(op) for op in reading.ops]
        self._tried: dict[tuple[int, Kinds], Kinds | None] = {}

    def found(self) -> list[tuple[Way, ...]]:
        """The options of each op; the first is what the rules chose."""
        free = [number for number, op in enumerate(self.reading.ops) if self._is_free(op)]
        for number in free:
            self._offer(number, self._ways(number), results=True)
        for number in reversed(free):
            self._offer(number, self._ways(number), results=False)
        ways = {number: self._offer(number, self._ways(number), results=True) for number in free}
        return [ways.get(number, (rule,)) for number, rule in enumerate(self.rules)]

    def _rule(self, op: Op) -> Way:
        kinds = self.reading.types
        if self.reading.term(op):
            return Way((kinds[op.operands[0]],) * 2, ())
        return Way(tuple(kinds[v] for v in op.operands), tuple(kinds[v] for v in op.results))

    def _is_free(self, op: Op) -> bool:
        """Whether an op has a choice."""
        values = [self.reading.roots[value] for value in (*op.operands, *op.results)]
        names = {n for v in values for n in self.reading.types[v].names}
        experts = self.layout.experts
        apart = any(experts.has(name) or name in experts.slots for name in names)
        return isinstance(op.attrs, FREE) and not apart

    def _offer(self, number: int, ways: Iterable[Way], results: bool) -> tuple[Way, ...]:
        """The ways, whose results (or else operands) are noted as forms of these values."""
        op, found = self.reading.ops[number], tuple(ways)
        for way in found:
            values, kinds = (op.results, way.gives) if results else (op.operands, way.takes)
            for value, kind in zip(values, kinds, strict=True):
                root = self.reading.roots[value]
                pool = self.pools[root]
                known = root in self.fixed or root in self.reading.fills
                if not known and len(pool) < MOST_FORMS:
                    pool[kind] = None
        return found

    def _ways(self, number: int) -> Iterator[Way]:
        """The op's options, each once."""
        rule = self.rules[number]
        yield rule
        op = self.reading.ops[number]
        if self.reading.term(op) or self.reading.total(op):
            yield from self._joins(op, rule)
            return
        seen = {rule.takes}
        for takes in self._candidates(op, rule):
            if takes not in seen:
                seen.add(takes)
                gives = self._fitting(number, takes)
                if gives is not None:
                    yield Way(takes, gives)

    def _joins(self, op: Op, rule: Way) -> Iterator[Way]:
        """The other forms in which a term is added to its sum, or in which that is had."""
        value = op.operands[0] if op.operands else op.results[1]
        (old, *_) = (*rule.takes, *rule.gives)
        for kind in tuple(self.pools[self.reading.roots[value]]):
            fixed = self.reading.roots[value] in self.fixed
            if kind != old and kind.combine == "sum" and not fixed and self._keeps((kind,), (old,)):
                yield Way((kind,) * len(rule.takes), (kind,) * len(rule.gives))

    def _candidates(self, op: Op, rule: Way) -> Iterator[Kinds]:
        """Forms of the operands that might do."""
        home = dim_axes(rule.takes)
        old = {new: old for old, new in op.attrs.pairs} if isinstance(op.attrs, ops.Rename) else {}
        kinds = [kind for v in op.operands for kind in self.pools[self.reading.roots[v]]]
        kinds += [
            kind.placed(Dim(old.get(dim.name, dim.name), dim.axes) for dim in kind.dims)
            for v in op.results
            for kind in self.pools[self.reading.roots[v]]
        ]
        places = [(dim_axes((kind,)), kind) for kind in kinds]
        for axes, kind in dict.fromkeys((tuple(sorted(a.items())), k) for a, k in places):
            for partial in dict.fromkeys((kind.partial if kind.combine == "sum" else (), ())):
                for apart in dict.fromkeys((partial, kind.partial, ())):
                    yield from self._placed(op, rule, joined(dict(axes), home, apart), partial)
        for other in self._yielding(home):
            yield from self._placed(op, rule, other, ())

    def _placed(self, op: Op, rule: Way, axes: Axes, partial: tuple[str, ...]) -> Iterator[Kinds]:
        """All operands on these axes, those open over `partial` that may be."""
        closed = tuple(at(kind, axes, ()) for kind in rule.takes)
        if not partial:
            yield closed
        elif isinstance(op.attrs, ops.Add | ops.AddN | ops.Sub):
            yield tuple(at(kind, axes, partial) for kind in rule.takes)
        else:
            for place in linear_in(op.attrs):
                kind = at(rule.takes[place], axes, partial)
                yield (*closed[:place], kind, *closed[place + 1 :])

    def _yielding(self, home: Axes) -> Iterator[Axes]:
        """The places where other dims of `home` have the axes that directives put `elsewhere`."""
        choices: dict[str, list[str]] = {}
        for reason in self.layout.elsewhere:
            if reason.dim in home:
                choices.setdefault(reason.axis, []).append(reason.dim)
        for picks in product(*choices.values()):
            found = {
                name: tuple(a for a in axes if name not in choices.get(a, ()))
                for name, axes in home.items()
            }
            for axis, dim in zip(choices, picks, strict=True):
                found[dim] = (*found[dim], axis)
            if choices:
                yield found

    def _fitting(self, number: int, takes: Kinds) -> Kinds | None:
        """The results for such operands, if they are allowed."""
        key = number, takes
        if key not in self._tried:
            self._tried[key] = self._judged(number, takes)
        return self._tried[key]

    def _judged(self, number: int, takes: Kinds) -> Kinds | None:
        op, rule = self.reading.ops[number], self.rules[number]
        if isinstance(op.attrs, ops.Cast) and takes[0].partial != rule.takes[0].partial:
            return None
        for value, kind in zip(op.operands, takes, strict=True):
            fill = self.reading.fills.get(self.reading.roots[value])
            if fill is not None and kind.partial and not can_be_open(fill):
                return None
        try:
            gives = op.attrs.infer(takes, ops.Env(self.sizes, {}))
        except ops.TypeRuleError:
            return None
        whole = op.attrs.whole(takes)
        kinds = (*takes, *gives)
        if not all(self._well_formed(kind, whole) for kind in kinds):
            return None
        if not self._stored(op, takes, gives == rule.gives):
            return None
        return gives if self._keeps(kinds, (*rule.takes, *rule.gives)) else None

    def _keeps(self, kinds: Kinds, ruled: Kinds) -> bool:
        """Whether dims are where directives put them, and work is divided no less than by rules."""
        mine, theirs = dim_axes(kinds), dim_axes(ruled)
        placed = all(
            axis in mine[name]
            for name, axes in theirs.items()
            for axis in axes
            if axis in self.layout.canonical.get(name, ())
        )
        return placed and used(theirs) <= used(mine)

    def _stored(self, op: Op, takes: Kinds, as_ruled: bool) -> bool:
        """Whether what belongs to parameters is in a form that the rules make."""
        roots = self.reading.roots
        if not as_ruled and self.fixed.intersection(roots[value] for value in op.results):
            return False
        return all(
            kind in self.pools[roots[value]]
            for value, kind in zip(op.operands, takes, strict=True)
            if roots[value] in self.fixed
        )

    def _well_formed(self, kind: Type, whole: Sequence[str]) -> bool:
        """Whether axes stand once, divide the dims evenly, and leave whole dims whole."""
        axes = [*kind.axes, *kind.partial]
        even = all(self.sizes.size(d.name) % self.sizes.mesh.extent(d.axes) == 0 for d in kind.dims)
        return (
            len(set(axes)) == len(axes)
            and even
            and not any(dim.axes for dim in kind.dims if dim.name in whole)
        )


def can_be_open(fill: Op) -> bool:
    """Whether a constant can be had as an open sum: zeros, and no host scalar."""
    attrs = fill.attrs
    assert isinstance(attrs, ops.Fill)
    return attrs.value == 0.0 and (bool(attrs.dims) or attrs.dtype != "f64")


def linear_in(attrs: ops.AnyAttrs) -> tuple[int, ...]:
    """The operands in each of which an op is linear, and so may be an open sum."""
    if isinstance(attrs, ops.Elementwise):
        return attrs.linear
    return (0, 1) if isinstance(attrs, ops.Dot) else (0,)


def dim_axes(kinds: Iterable[Type]) -> dict[str, tuple[str, ...]]:
    """The axes of all dims of these types; where they differ, those of the first that has any."""
    found: dict[str, tuple[str, ...]] = {}
    for kind in kinds:
        for dim in kind.dims:
            found[dim.name] = found.get(dim.name) or dim.axes
    return found


def joined(axes: Axes, home: Axes, apart: Sequence[str]) -> Axes:
    """The axes, for dims that they lack those of `home` that are still free."""
    taken = {bare(axis) for on in axes.values() for axis in on} | set(apart)
    rest = {
        name: tuple(axis for axis in on if bare(axis) not in taken)
        for name, on in home.items()
        if name not in axes
    }
    return {**{name: on for name, on in axes.items() if name in home}, **rest}


def at(kind: Type, axes: Axes, partial: tuple[str, ...]) -> Type:
    """The type on these axes, an open sum over `partial`."""
    dims = tuple(Dim(dim.name, axes.get(dim.name, ())) for dim in kind.dims)
    return structs.replace(kind, dims=dims, partial=partial, combine="sum")


def used(axes: Mapping[str, tuple[str, ...]]) -> set[str]:
    """All axes that divide something."""
    return {bare(axis) for on in axes.values() for axis in on}
