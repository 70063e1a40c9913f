"""Elementwise work on one tensor's elements, and which such parts of a function do the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from fllmc.ir.ops import AnyAttrs, Elementwise, ReduceSum, Stop
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Dim
from fllmc.ir.walk import host_values
from fllmc.passes.clusters import Clusters

Form = tuple[object, ...]
"""What work is, but for the tensors that it is done on: equal for parts that do the same."""


class Part(msgspec.Struct, frozen=True):
    """Ops, by position, on tensors of the same dims: values from outside, then what others use.

    `reads` are tensors and `scalars` have no dims. A value that is written has the dims, or none
    and is a sum over all of them.
    """

    members: tuple[int, ...]
    dims: tuple[Dim, ...]
    reads: tuple[int, ...]
    scalars: tuple[int, ...]
    writes: tuple[int, ...]
    form: Form


def parts_of(function: Function) -> list[Part]:
    """The parts of a function, each as large as can be without waiting for its own results."""
    clusters = Clusters(function)
    dims_of: dict[int, tuple[Dim, ...]] = {}
    host = host_values(function)
    for at, op in enumerate(function.ops):
        dims = () if host.issuperset(op.results) else worked_dims(function, op)
        near = sorted(c for c in clusters.inputs_of(at) if dims and dims_of.get(c) == dims)
        home = next((c for c in near if clusters.may_join(at, c)), None)
        if home is None:
            home = clusters.start(at)
            if dims:
                dims_of[home] = dims
            continue
        clusters.join(at, home)
        for other in near:
            if other != home and clusters.may_merge(home, other):
                clusters.merge(home, other)
                del dims_of[other]
    return [part_of(function, sorted(clusters.members[c]), dims) for c, dims in dims_of.items()]


def worked_dims(function: Function, op: Op) -> tuple[Dim, ...]:
    """The dims of all tensors that an op works on element by element, or sums up; or nothing."""
    whole = isinstance(op.attrs, ReduceSum)
    if not whole and (not isinstance(op.attrs, Elementwise) or isinstance(op.attrs, Stop)):
        return ()
    kinds = [function.types[value] for value in op.operands]
    kinds += [] if whole else [function.types[value] for value in op.results]
    found = {kind.dims for kind in kinds if kind.dims}
    if len(found) != 1 or any(kind.partial or kind.index for kind in kinds):
        return ()
    (dims,) = found
    if isinstance(op.attrs, ReduceSum) and set(op.attrs.dims) != {dim.name for dim in dims}:
        return ()
    return dims


def part_of(function: Function, members: Sequence[int], dims: tuple[Dim, ...]) -> Part:
    """These ops as a part."""
    ops = [function.ops[at] for at in members]
    own = {value: number for number, v in enumerate(op.results for op in ops) for value in v}
    given = dict.fromkeys(v for op in ops for v in op.operands if v not in own)
    reads = [value for value in given if function.types[value].dims]
    used = users(function)
    inside = set(members)
    writes = tuple(v for v in own if not inside.issuperset(used.get(v, ())))
    numbers = {value: number for number, value in enumerate(reads)}

    def operand(value: int) -> tuple[str, int]:
        if value in own:
            return "own", own[value]
        return ("read", numbers[value]) if value in numbers else ("scalar", value)

    form = tuple(
        (bare(op.attrs), tuple(map(operand, op.operands)), function.types[op.results[0]].dtype)
        for op in ops
    )
    ends = tuple(own[value] for value in writes)
    kinds = tuple(function.types[value].dtype for value in reads)
    scalars = tuple(value for value in given if value not in numbers)
    return Part(tuple(members), dims, tuple(reads), scalars, writes, (form, ends, kinds))


def bare(attrs: AnyAttrs) -> bytes:
    """The attributes, but for the names of dims that are summed."""
    if isinstance(attrs, ReduceSum):
        attrs = ReduceSum(())
    return msgspec.msgpack.encode(attrs)


def users(function: Function) -> dict[int, list[int]]:
    """The positions of the ops that use each value; the function's results are used behind all."""
    found: dict[int, list[int]] = {}
    for value, at in uses(function):
        found.setdefault(value, []).append(at)
    return found


def uses(function: Function) -> Iterator[tuple[int, int]]:
    """Each use of a value, with the position of the op."""
    for at, op in enumerate(function.ops):
        yield from ((value, at) for value in op.operands)
    yield from ((value, len(function.ops)) for value in function.results)
