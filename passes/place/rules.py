"""How each op is placed: the forms in which it takes its operands.

Open sums stay open through what is linear in them alone (adding others that are open alike,
casts, changes of sign and layout), so that they are resolved once and as late as may be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import takewhile
from typing import Any, Final, TypeAlias

from msgspec import structs

from fllmc.ir import ops
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Op
from fllmc.ir.types import DTYPE_BYTES, Dim, Type, bare, deals_zigzag
from fllmc.passes.place import experts
from fllmc.passes.place.attention import attend
from fllmc.passes.place.directives import Axes
from fllmc.passes.place.recurrence import recur
from fllmc.passes.place.site import Constant, Site, Value, axes_of

Rule: TypeAlias = Callable[[Site, Op, Any], Sequence[Value]]


def target(site: Site, op: Op) -> Axes:
    """Where an elementwise op is done.

    Operands with the same dims are joined where their parameter is stored, else where one of them
    is divided most; operands of different dims where the op's dims are.
    """
    kinds = [site.kind(value) for value in op.operands if site.kind(value).dims]
    if not kinds or any(set(kind.names) != set(kinds[0].names) for kind in kinds):
        return site.place(op)
    if site.belongs(op.results[0]):
        return site.home(op.results[0])
    return axes_of(max((site.layout.place(kinds[0]), *kinds), key=lambda kind: len(kind.axes)))


def at_home(site: Site, op: Op, attrs: ops.AnyAttrs) -> Sequence[Value]:
    """All operands resolved, where the op's dims are."""
    axes = site.place(op)
    operands = [site.take(value, axes) for value in op.operands]
    return site.emit(placed_attrs(attrs, axes), *operands)


def looked_up(site: Site, op: Op, attrs: ops.Take) -> Sequence[Value]:
    """The table is whole over axes that divide the indices: each rank looks up its own."""
    axes = site.place(op)
    table, index = op.operands
    number = site.take(index, axes)
    dim = apart(place_dim(Dim(attrs.dim), axes), site.mover.kind(number))
    return site.emit(attrs, site.take(table, {**axes, dim.name: dim.axes}), number)


def put_back(site: Site, op: Op, attrs: ops.Put) -> Sequence[Value]:
    """As for take: a sum over axes that divide the indices, whole over these."""
    axes = site.place(op)
    index, value = (site.take(operand, axes) for operand in op.operands)
    dim = apart(place_dim(attrs.dim, axes), site.mover.kind(index))
    return site.emit(ops.Put(dim), index, value)


def apart(dim: Dim, index: Type) -> Dim:
    """The dim on those of its axes that do not divide the indices."""
    return one_stretch(Dim(dim.name, tuple(a for a in dim.axes if bare(a) not in index.axes)))


def one_stretch(dim: Dim) -> Dim:
    """The dim whole over an axis that deals in zig-zag, and what that divides further."""
    axes = tuple(takewhile(lambda axis: not deals_zigzag((axis,)), dim.axes))
    return Dim(dim.name, axes)


def picked(site: Site, op: Op, attrs: ops.Pick) -> Sequence[Value]:
    """As other ops, each rank with one stretch of the dim."""
    x, index = op.operands
    dim = one_stretch(place_dim(Dim(attrs.dim), site.place(op)))
    axes = {**site.place(op), dim.name: dim.axes}
    return site.emit(attrs, site.take(x, axes), site.take(index, axes))


def shifted(site: Site, op: Op, attrs: ops.Shift) -> Sequence[Value]:
    """Where the other dims are, with all of the dim along which it is shifted."""
    axes = {**site.place(op), attrs.dim: (), attrs.to: ()}
    return site.emit(attrs, *(site.take(value, axes) for value in op.operands))


def placed_attrs(attrs: ops.AnyAttrs, axes: Axes) -> ops.AnyAttrs:
    """The attributes, with the dims that they make on these axes."""
    if isinstance(attrs, ops.Iota):
        return structs.replace(attrs, dim=place_dim(attrs.dim, axes))
    if isinstance(attrs, ops.Spread):
        return structs.replace(attrs, dim=one_stretch(place_dim(attrs.dim, axes)))
    if isinstance(attrs, ops.Random):
        return structs.replace(attrs, dims=tuple(place_dim(dim, axes) for dim in attrs.dims))
    return attrs


def place_dim(dim: Dim, axes: Axes) -> Dim:
    """The dim on its axes."""
    return Dim(dim.name, axes.get(dim.name, ()))


def blockwise(site: Site, op: Op, attrs: ops.Quantize | ops.Dequantize) -> Sequence[Value]:
    """Where the value's dims are, if each rank then holds whole blocks; codes and scales alike."""
    value = (*op.operands, *op.results)[0 if isinstance(attrs, ops.Quantize) else 2]
    axes = dict(site.layout.axes(site.source.types[value].names))
    dim = one_stretch(place_dim(Dim(attrs.dim), axes))
    whole = site.mover.build.sizes.size(attrs.blocks) % site.layout.mesh.extent(dim.axes)
    axes.update(dict.fromkeys((attrs.dim, attrs.codes, attrs.blocks), () if whole else dim.axes))
    return site.emit(attrs, *(site.take(operand, axes) for operand in op.operands))


def fill(site: Site, op: Op, attrs: ops.Fill) -> Sequence[Value]:
    """Made where it is used."""
    return (Constant(site.source.types[op.results[0]], attrs.value, op),)


def record(site: Site, op: Op, attrs: ops.Record) -> Sequence[Value]:
    """A zero, made where it is used: what is recorded was read by the backward pass."""
    return (Constant(site.source.types[op.results[0]], 0.0, op),)


def elementwise(site: Site, op: Op, attrs: ops.AnyAttrs) -> Sequence[Value]:
    """All operands resolved, where the op is done."""
    axes = target(site, op)
    return site.emit(attrs, *(site.take(value, axes) for value in op.operands))


def scaled(site: Site, op: Op, attrs: ops.Mul | ops.Div) -> Sequence[Value]:
    """An open sum times a scalar stays open if it has no other use; else as any elementwise op."""
    for place in (0, 1) if isinstance(attrs, ops.Mul) else (0,):
        value, other = op.operands[place], op.operands[1 - place]
        kind = site.kind(value)
        lone = site.used_once(value) and not site.kind(other).dims
        if kind.partial and kind.combine == "sum" and lone:
            scalar = site.take(other, {})
            pair = (site.as_is(value), scalar) if place == 0 else (scalar, site.as_is(value))
            return site.emit(attrs, *pair)
    return elementwise(site, op, attrs)


def linear(site: Site, op: Op, attrs: ops.AnyAttrs) -> Sequence[Value]:
    """One operand as it is: neither moved nor, where that costs no second reduction, resolved."""
    (value,) = op.operands
    number = site.as_is(value)
    kind = site.mover.kind(number)
    stays = kind.combine == "sum" and site.mover.closed_already(number) is None
    if not stays or site.closes_anyway(value) or widens_too_early(site, op):
        number = site.closed(number, value)
    return site.emit(attrs, number)


def dealt(site: Site, op: Op, attrs: ops.Chunk | ops.Unchunk) -> Sequence[Value]:
    """As it is where each rank holds whole chunks, or all of a dim; else whole along the dim."""
    (value,) = op.operands
    kind = site.kind(value)
    split = isinstance(attrs, ops.Chunk)
    held = kind.axes_of(attrs.dim if split else attrs.over)
    extent = site.layout.mesh.extent(held) if split else 2
    if not held or site.mover.build.sizes.size(attrs.part) % extent == 0:
        return linear(site, op, attrs)
    whole = {**axes_of(kind), (attrs.dim if split else attrs.over): ()}
    return site.emit(attrs, site.take(value, whole))


def widens_too_early(site: Site, op: Op) -> bool:
    """Whether a cast would make a sum wider before it is moved.

    Gradients are summed in the layout's `reduce`, and so not in what an optimizer widens that to.
    """
    if not isinstance(op.attrs, ops.Cast):
        return False
    before = site.kind(op.operands[0]).dtype
    if site.belongs(op.results[0]) and before != site.layout.reduce:
        return False
    wider = DTYPE_BYTES[op.attrs.dtype] > DTYPE_BYTES[before]
    return wider and not site.only_summed(op.results[0])


def summed(site: Site, op: Op, attrs: ops.ReduceSum) -> Sequence[Value]:
    """A sum of an open sum stays open, and is smaller; the operand stays where it is."""
    (value,) = op.operands
    number = site.as_is(value)
    if site.mover.kind(number).combine == "max" or not site.used_once(value):
        number = site.closed(number, value)
    return site.emit(attrs, number)


def greatest(site: Site, op: Op, attrs: ops.ReduceMax) -> Sequence[Value]:
    """The operand resolved, where it is."""
    (value,) = op.operands
    return site.emit(attrs, site.closed(site.as_is(value), value))


def added(site: Site, op: Op, attrs: ops.AnyAttrs) -> Sequence[Value]:
    """Open sums are added as they are while all are open alike, else closed until they are."""
    alike = common_kind(site, op)
    if alike is not None:
        return site.emit(attrs, *(site.take(v, axes_of(alike), alike.partial) for v in op.operands))
    axes = target(site, op)
    opens = open_axes(site, op, axes)
    held = list(opens.values())
    keep = tuple(sorted(axis for axis in set[str]().union(*held) if all(axis in h for h in held)))
    if isinstance(attrs, ops.AddN):
        return add_groups(site, op, axes, opens, keep)
    return site.emit(attrs, *(site.take(value, axes, keep) for value in op.operands))


def common_kind(site: Site, op: Op) -> Type | None:
    """The type of all operands where it is one, open, and not a parameter's: they are added first.

    So what is combined, and maybe scattered, is their sum alone.
    """
    if site.belongs(op.results[0]):
        return None
    kinds = {site.kind(v) for v in op.operands if not isinstance(site.values[v], Constant)}
    zeros = [v for v in op.operands if isinstance(site.values[v], Constant)]
    kind = kinds.pop() if len(kinds) == 1 else None
    return kind if kind and kind.partial and kind.combine == "sum" and not zeros else None


def open_axes(site: Site, op: Op, axes: Axes) -> dict[int, set[str]]:
    """The axes over which each operand is open once it is placed; zeros are left out."""
    names = site.source.types[op.results[0]].names
    scattered = {bare(axis) for name in names for axis in axes.get(name, ())}
    found: dict[int, set[str]] = {}
    for value in op.operands:
        held = site.values[value]
        if isinstance(held, Constant):
            if not held.may_be_open:
                found[value] = set()
            continue
        kind = site.mover.kind(held)
        found[value] = set(kind.partial) - scattered if kind.combine == "sum" else set()
    return found


def add_groups(
    site: Site, op: Op, axes: Axes, opens: Mapping[int, set[str]], common: tuple[str, ...]
) -> Sequence[Value]:
    """Operands that are open alike are added first, and each such sum is closed once."""
    groups: dict[tuple[str, ...], list[int]] = {}
    for value in op.operands:
        groups.setdefault(tuple(sorted(opens.get(value, common))), []).append(value)
    sums: list[int] = []
    for keep, members in groups.items():
        numbers = taken_together(site, op, members, axes, keep)
        if len(groups) > 1 and len(numbers) == 1:
            sums.append(site.mover.close(numbers[0], common))
            continue
        total = add_up(site, numbers)
        sums.append(total if len(groups) == 1 else site.mover.close(total, common))
    return (add_up(site, sums),)


def taken_together(
    site: Site, op: Op, members: Sequence[int], axes: Axes, keep: Sequence[str]
) -> list[int]:
    """The members on these axes; those that are open over more, and alike, as their sum."""
    alike: dict[Type, list[int]] = {}
    for value in members:
        if not isinstance(site.values[value], Constant) and not site.belongs(op.results[0]):
            alike.setdefault(site.kind(value), []).append(value)
    first: dict[int, int] = {}
    for kind, group in alike.items():
        if len(group) > 1 and set(kind.partial) - set(keep) and kind.combine == "sum":
            total = add_up(site, [site.as_is(value) for value in group])
            first.update(dict.fromkeys(group, site.mover.move(total, axes, keep)))
    numbers = [first.get(v) or site.take(v, axes, keep) for v in members]
    return list(dict.fromkeys(numbers)) if first else numbers


def add_up(site: Site, numbers: Sequence[int]) -> int:
    """The sum; of one value, that value."""
    return numbers[0] if len(numbers) == 1 else site.emit(ops.AddN(), *numbers)[0]


def misplaced(site: Site, op: Op, attrs: ops.AnyAttrs) -> Sequence[Value]:
    """An op that a training program does not hold."""
    raise InternalError(f"{site.source.name}: {op.kind} before values are placed")


RULES: Final[Mapping[type[ops.Attrs], Rule]] = {
    **dict.fromkeys(
        (
            ops.Conv,
            ops.ConvInput,
            ops.ConvWeight,
            ops.Dot,
            ops.Iota,
            ops.Number,
            ops.Random,
            ops.Rope,
            ops.Spread,
            ops.TopK,
        ),
        at_home,
    ),
    **dict.fromkeys(
        (
            ops.Cos,
            ops.Erf,
            ops.Exp,
            ops.Less,
            ops.Log,
            ops.Maximum,
            ops.Minimum,
            ops.Pow,
            ops.Rsqrt,
            ops.Sigmoid,
            ops.Silu,
            ops.SiluGrad,
            ops.Sin,
            ops.Sqrt,
            ops.Tanh,
            ops.Where,
        ),
        elementwise,
    ),
    **dict.fromkeys(
        (
            ops.Cast,
            ops.Neg,
            ops.Reindex,
            ops.Rename,
            ops.Stop,
            ops.Transpose,
        ),
        linear,
    ),
    **dict.fromkeys((ops.Add, ops.AddN, ops.Sub), added),
    **dict.fromkeys((ops.Div, ops.Mul), scaled),
    **dict.fromkeys(
        (
            *ops.COLLECTIVES,
            ops.Bucketed,
            ops.Call,
            ops.FromHost,
            ops.Fused,
            ops.LocalSlice,
            ops.Pipeline,
            ops.Share,
            ops.ToHost,
            ops.Wait,
        ),
        misplaced,
    ),
    **dict.fromkeys((ops.Attend, ops.AttendGrad), attend),
    **dict.fromkeys((ops.Dequantize, ops.Quantize), blockwise),
    **dict.fromkeys((ops.Chunk, ops.Unchunk), dealt),
    **dict.fromkeys((ops.Recur, ops.RecurGrad), recur),
    ops.Combine: experts.combine,
    ops.Dispatch: experts.dispatch,
    ops.Fill: fill,
    ops.GroupedDot: experts.grouped,
    ops.GroupedOuter: experts.grouped,
    ops.Pick: picked,
    ops.Put: put_back,
    ops.Record: record,
    ops.ReduceMax: greatest,
    ops.ReduceSum: summed,
    ops.Shift: shifted,
    ops.Take: looked_up,
    ops.Tally: experts.tally,
}
"""Every op but scan, which `scans.py` places."""
