"""What `shard` directives say of a mesh: where each dim lives, and where parameters are stored.

A directive places its dims in all values that have them. One that says `elsewhere` yields: its dim
is on an axis in those values none of whose other dims is on it, and whole where an op needs it so.
A directive with a selector divides further how the selected parameters are stored: they are
gathered where they are used, and their gradients and optimizer states are divided as they are. What
`zero` adds stands in `zero.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import gcd, isqrt

from msgspec import Struct, structs

from fllmc.ir.coded import uncut
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.program import Parameter, Program
from fllmc.ir.select import selects_parameter
from fllmc.ir.settings import Context as ContextKind
from fllmc.ir.settings import Shard, Zero
from fllmc.ir.span import Span
from fllmc.ir.types import Dim, Mesh, Sizes, Type, bare
from fllmc.passes.naming import is_stand_in, stand_ins
from fllmc.passes.place.expert_layout import ExpertDims, apart
from fllmc.passes.place.heads import shared_heads
from fllmc.passes.place.part_rows import place_rows
from fllmc.passes.place.zero import Divided, divide, zero_text
from fllmc.passes.place_errors import (
    AxisTwice,
    Indivisible,
    KeyHeadsCopied,
    LeftWhole,
    NoSuchAxis,
    SelectsNothing,
)
from fllmc.passes.quantize_errors import BlocksApart

Axes = Mapping[str, tuple[str, ...]]
"""The axes that divide each dim, by the dim's name; a dim that is absent is whole."""


class Because(Struct, frozen=True):
    """Dim `dim` is on `axis` because of the directive at `span`; `text` is the directive."""

    dim: str
    axis: str
    span: Span
    text: str


class Layout(Struct, frozen=True):
    """The directives, resolved: `canonical` for all values, `stored` for single parameters.

    `elsewhere` are the dims on axes that yield, in the order in which they choose. `zero` holds
    what `zero` directives do, and `unzeroed` where these parameters would be stored without them,
    both by parameter. `context` is how attention sees a divided sequence, `reduce` the dtype in
    which gradients are summed over ranks.
    `experts` are the dims of mixtures of experts, which have rules of their own.
    """

    mesh: Mesh
    canonical: Axes
    stored: Mapping[str, Axes]
    reasons: tuple[Because, ...]
    stored_reasons: Mapping[str, tuple[Because, ...]]
    elsewhere: tuple[Because, ...] = ()
    experts: ExpertDims = ExpertDims()
    zero: Mapping[str, Divided] = {}
    unzeroed: Mapping[str, Axes] = {}
    context: ContextKind = "gather"
    reduce: str = "f32"

    @property
    def empty(self) -> bool:
        """Whether nothing at all is divided."""
        placed = self.canonical or self.stored or self.elsewhere or self.experts.experts
        return not placed

    @property
    def most(self) -> Axes:
        """All axes that each dim may be on."""
        found = dict(self.canonical)
        for reason in self.elsewhere:
            found[reason.dim] = (*found.get(reason.dim, ()), reason.axis)
        return found

    def axes(self, names: Iterable[str], whole: Iterable[str] = ()) -> Axes:
        """Where the dims of a value, or of all that an op works on, are; `whole` ones don't yield.

        Dims that the directives without `elsewhere` place come first, then the others take the
        axes that are left.
        """
        given, fixed = tuple(names), tuple(whole)
        found = yielding(self.canonical, self.elsewhere, given, fixed)
        return self.experts.settle(found, given, fixed)

    def place(self, kind: Type) -> Type:
        """The type at the canonical placement of its dims; indices cost little and don't yield."""
        return placed(kind, self.canonical if kind.index else self.axes(kind.names))

    def place_parameter(self, name: str, kind: Type) -> Type:
        """The type of a parameter, or of a state or gradient of it, as it is stored."""
        return placed(kind, self.stored_axes(name, kind.names))

    def stored_axes(self, name: str, names: Sequence[str]) -> Axes:
        """How a parameter with these dims is stored."""
        return self.stored[name] if name in self.stored else self.axes(names)

    def used(self, name: str, names: Sequence[str]) -> Axes:
        """How scans are given a parameter: as it is stored, or whole over `zero`'s axes."""
        return self.unzeroed[name] if self.gathered_once(name) else self.stored_axes(name, names)

    def summed(self, name: str, names: Sequence[str]) -> Axes:
        """How a parameter's gradient is summed over layers and micro-batches."""
        late = name in self.zero and self.zero[name].stage < 2
        return self.unzeroed[name] if late else self.stored_axes(name, names)

    def gathered_once(self, name: str) -> bool:
        """Whether a parameter is stored in parts, yet used whole throughout a step."""
        found = self.zero.get(name)
        return found is not None and found.stage < 3 and bool(found.dim)

    def why(self, dim: str, axis: str, parameter: str = "") -> Because | None:
        """The directive that put the dim on the axis."""
        reasons = (*self.reasons, *self.elsewhere, *self.stored_reasons.get(parameter, ()))
        for reason in reasons:
            if (reason.dim, reason.axis) == (dim, axis):
                return reason
        return None


def placed(kind: Type, axes: Axes) -> Type:
    """The type with each dim on its axes."""
    return kind.placed(Dim(dim.name, axes.get(dim.name, ())) for dim in kind.dims)


def yielding(
    hard: Axes, elsewhere: Iterable[Because], names: Sequence[str], whole: Sequence[str]
) -> Axes:
    """The dims on their axes, and on those of `elsewhere` that no other of them is on."""
    found = dict(hard)
    taken = {bare(axis) for name in names for axis in hard.get(name, ())}
    for reason in elsewhere:
        if reason.dim in names and reason.dim not in whole and reason.axis not in taken:
            found[reason.dim] = (*found.get(reason.dim, ()), reason.axis)
            taken.add(reason.axis)
    return found


def directive_text(shard: Shard) -> str:
    """The directive as it is written."""
    names = [dim for dim in shard.dims if not is_stand_in(dim)]
    dims = names[0] if len(names) == 1 else f"({', '.join(names)})"
    axes = shard.axes[0] if len(shard.axes) == 1 else f"({', '.join(shard.axes)})"
    where = f" in {shard.selector}" if shard.selector else ""
    return f"shard {dims} over {axes}{where}" + (" elsewhere" if shard.elsewhere else "")


class Resolved(Struct, frozen=True):
    """A layout with what is wrong or to be noted about the directives."""

    layout: Layout
    diagnostics: tuple[Diagnostic, ...]


def resolve(
    shards: Sequence[Shard], mesh: Mesh, program: Program, zeros: Sequence[Zero] = ()
) -> Resolved:
    """The layout that directives give a training program on a mesh."""
    sizes = Sizes(program.sizes.dims, mesh)
    shards = tuple(with_parts(shard, sizes) for shard in shards)
    shards, left_whole = _fitting(shards, sizes, program)
    divided = {axis.name for axis in mesh.axes if axis.size > 1}
    canonical: dict[str, tuple[str, ...]] = {}
    reasons: list[Because] = []
    elsewhere: list[Because] = []
    found: list[Diagnostic] = [*left_whole, *_missing_axes(shards, mesh)]
    for shard in shards:
        if not shard.selector:
            for reason in _reasons(shard, divided, sizes):
                if shard.elsewhere:
                    elsewhere.append(reason)
                    continue
                canonical[reason.dim] = (*canonical.get(reason.dim, ()), reason.axis)
                reasons.append(reason)
    found += _repeated((*reasons, *elsewhere), "every value that has it")
    stored: dict[str, Axes] = {}
    stored_reasons: dict[str, tuple[Because, ...]] = {}
    for shard in shards:
        if shard.selector:
            chosen = [p for p in program.parameters if selects_parameter(shard.selector, p)]
            if not chosen:
                found.append(_selects_nothing(shard, program))
            for parameter in chosen:
                here = [r for r in _reasons(shard, divided, sizes) if _has(parameter, r.dim)]
                axes = dict(stored.get(parameter.name, canonical))
                for reason in here:
                    axes[reason.dim] = (*axes.get(reason.dim, ()), reason.axis)
                if here:
                    stored[parameter.name] = axes
                    others = stored_reasons.get(parameter.name, ())
                    stored_reasons[parameter.name] = (*others, *here)
    found += place_rows(program, sizes, canonical, reasons, stored, stored_reasons)
    experts, canonical, elsewhere = apart(program, canonical, elsewhere, mesh)
    for name, axes in stored.items():
        names = program.parameter(name).type.names
        rest = {dim: on for dim, on in axes.items() if dim not in experts.experts}
        stored[name] = experts.settle(yielding(rest, elsewhere, names, ()), names, ())
    layout = Layout(mesh, canonical, stored, tuple(reasons), stored_reasons, tuple(elsewhere))
    layout = structs.replace(layout, experts=experts)
    layout, wrong = _with_zero(layout, zeros, program, sizes)
    found += wrong
    every = {**layout.canonical, **experts.experts}
    found += _indivisible(structs.replace(layout, canonical=every), sizes, program)
    return Resolved(layout, tuple(found))


def _with_zero(
    layout: Layout, zeros: Sequence[Zero], program: Program, sizes: Sizes
) -> tuple[Layout, list[Diagnostic]]:
    """The layout with what `zero` directives add to how parameters are stored."""
    before = {p.name: layout.stored_axes(p.name, p.type.names) for p in program.parameters}
    zero, wrong = divide(zeros, program, before, sizes)
    stored, reasons = dict(layout.stored), dict(layout.stored_reasons)
    for name, how in zero.items():
        if how.dim:
            stored[name] = {
                **before[name],
                how.dim: (*before[name].get(how.dim, ()), *how.axes),
            }
            text, span = zero_text(how.directive), how.directive.span
            own = tuple(Because(how.dim, axis, span, text) for axis in how.axes)
            reasons[name] = (*reasons.get(name, ()), *own)
    unzeroed = {name: before[name] for name in zero}
    return structs.replace(
        layout, stored=stored, stored_reasons=reasons, zero=zero, unzeroed=unzeroed
    ), wrong


def with_parts(shard: Shard, sizes: Sizes) -> Shard:
    """The directive, which speaks of the parts that a dim is cut into as of the dim itself."""
    parts = tuple(part for dim in shard.dims for part in stand_ins(dim, sizes.dims))
    return structs.replace(shard, dims=(*shard.dims, *parts)) if parts else shard


def _fitting(
    shards: Sequence[Shard], sizes: Sizes, program: Program
) -> tuple[tuple[Shard, ...], list[Diagnostic]]:
    """The directives, optional ones without the dims that their axes do not divide.

    One that would be left without dims stays as it is, to be reported: its axis would do nothing.
    Query and key heads are divided together or not at all; but key heads that are too few to be
    divided as query heads are stay whole, and are copied where they are used.
    """
    pairs = {
        pair for function in program.functions for op in function.ops for pair in shared_heads(op)
    }
    fitting: list[Shard] = []
    found: list[Diagnostic] = []
    for shard in shards:
        axes = [axis for axis in shard.axes if sizes.mesh.has(axis)]
        extent = sizes.mesh.extent(axes)
        dims = [dim for dim in shard.dims if _declared(dim, sizes)]
        for heads, keys in sorted(pairs):
            few = {heads, keys} <= set(dims) and heads != keys and sizes.size(keys) % extent
            if few and sizes.size(heads) % extent == 0:
                dims.remove(keys)
                shard = structs.replace(shard, dims=tuple(d for d in shard.dims if d != keys))
                copied = (keys, sizes.size(keys), axes[-1], extent, heads)
                found.append(KeyHeadsCopied(shard.span, *copied))
        misfits = {dim for dim in dims if sizes.size(dim) % extent}
        together = {dim for pair in sorted(pairs) if misfits & set(pair) for dim in pair}
        kept = tuple(dim for dim in dims if dim not in misfits | together)
        if not shard.optional or not misfits or not kept:
            fitting.append(shard)
            continue
        found += [
            LeftWhole(shard.span, dim, sizes.size(dim), axes[0], extent)
            for dim in dims
            if dim in misfits
        ]
        fitting.append(structs.replace(shard, dims=kept))
    return tuple(fitting), found


def _has(parameter: Parameter, dim: str) -> bool:
    return dim in parameter.type.names


def _reasons(shard: Shard, divided: Iterable[str], sizes: Sizes) -> list[Because]:
    text = directive_text(shard)
    return [
        Because(dim, axis, shard.span, text)
        for dim in shard.dims
        if _declared(dim, sizes)
        for axis in shard.axes
        if axis in divided
    ]


def _declared(dim: str, sizes: Sizes) -> bool:
    try:
        return sizes.size(dim) > 0
    except KeyError:
        return False


def _missing_axes(shards: Sequence[Shard], mesh: Mesh) -> Iterable[Diagnostic]:
    """A warning for each axis that the mesh lacks; none on one device, where nothing is divided."""
    if mesh.size == 1:
        return
    told: set[str] = set()
    for shard in shards:
        for axis in shard.axes:
            if not mesh.has(axis) and axis not in told:
                told.add(axis)
                dims = {d for other in shards if axis in other.axes for d in other.dims}
                shown = ", ".join(f"`{dim}`" for dim in sorted(dims))
                yield NoSuchAxis(shard.span, axis, shown, str(mesh))


def _selects_nothing(shard: Shard, program: Program) -> Diagnostic:
    paths = tuple(p.shown_name for p in program.parameters)
    return SelectsNothing(shard.span, shard.selector, paths)


def _repeated(reasons: Sequence[Because], value: str) -> list[Diagnostic]:
    """A dim that is put on one axis twice."""
    found: list[Diagnostic] = []
    seen: dict[tuple[str, str], Because] = {}
    for reason in reasons:
        first = seen.setdefault((reason.dim, reason.axis), reason)
        if first is not reason:
            dims = f"`{reason.dim}` and `{reason.dim}` again"
            found.append(AxisTwice(reason.span, reason.axis, dims, value, first.span))
    return found


def _indivisible(layout: Layout, sizes: Sizes, program: Program) -> list[Diagnostic]:
    """Dims that their axes do not divide, each reported once for an axis."""
    found: dict[tuple[str, str], Diagnostic] = {}
    cases = [("", dim, axes) for dim, axes in layout.most.items()]
    for name, stored in layout.stored.items():
        here = program.parameter(name).type.names
        cases += [(name, dim, axes) for dim, axes in stored.items() if dim in here]
    for name, dim, axes in cases:
        rest = sizes.size(dim)
        for axis in axes:
            extent = layout.mesh.extent((axis,))
            if rest % extent:
                found.setdefault((dim, axis), _misfit(layout, sizes, name, dim, axis))
                break
            rest //= extent
    return list(found.values())


def _misfit(layout: Layout, sizes: Sizes, parameter: str, dim: str, axis: str) -> Diagnostic:
    reason = layout.why(dim, axis, parameter)
    assert reason is not None
    stored = layout.stored.get(parameter, {})
    others = [d for axes in (layout.most, stored) for d, on in axes.items() if axis in on]
    shown = tuple(dict.fromkeys(f"{other}={sizes.size(other)}" for other in others))
    extent = layout.mesh.extent((axis,))
    if uncut(dim) != dim:
        return BlocksApart(reason.span, uncut(dim), sizes.size(dim), axis, extent)
    works = sizes_that_work(layout, sizes, axis, (), parameter)
    few = tuple(size for size in works if size <= 4 * extent)
    return Indivisible(reason.span, dim, sizes.size(dim), axis, extent, shown, few)


def sizes_that_work(
    layout: Layout, sizes: Sizes, axis: str, also: Sequence[str] = (), parameter: str = ""
) -> tuple[int, ...]:
    """The sizes of an axis that divide every dim on it, and the dims in `also`."""
    shares = [sizes.size(dim) for dim in also]
    for placement in (layout.most, layout.stored.get(parameter, {})):
        for dim, axes in placement.items():
            if axis in axes:
                shares.append(_share(layout, sizes, dim, axis, axes))
    return divisors(gcd(*shares))


def _share(layout: Layout, sizes: Sizes, dim: str, axis: str, axes: tuple[str, ...]) -> int:
    """The dim's size after the other axes that divide it."""
    size = sizes.size(dim)
    return size // gcd(size, layout.mesh.extent(other for other in axes if other != axis))


def divisors(number: int) -> tuple[int, ...]:
    """All divisors, ascending."""
    low = [size for size in range(1, isqrt(number) + 1) if number % size == 0]
    return tuple(sorted({*low, *(number // size for size in low)}))
