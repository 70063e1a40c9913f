"""Floating-point operations of ops."""

from __future__ import annotations

from fllmc.ir.ops import (
    Attend,
    AttendGrad,
    Conv,
    Dot,
    DotAdd,
    GroupedDot,
    GroupedOuter,
    Recur,
    RecurGrad,
)
from fllmc.ir.ops.experts import own_axes
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes, Type

CHUNK = 64
"""The positions of a sequence that recurrences take together."""


def op_flops(function: Function, op: Op, sizes: Sizes) -> int:
    """Floating-point operations of a contraction or an attention, zero for any other op.

    A multiplication with an addition counts as two. Of attention the visible pairs are
    computed alone. Experts are taken to be chosen alike.
    """
    match op.attrs:
        case DotAdd(contract=contract) | Dot(contract=contract):
            a = function.types[op.operands[-2]]
            inner = 1
            for name in contract:
                inner *= sizes.size(name) // sizes.mesh.extent(a.axes_of(name))
            return 2 * sizes.local_elements(function.types[op.results[0]]) * inner
        case Attend():
            return attend_flops(op.attrs, function.types[op.operands[0]], sizes)
        case Recur():
            return recur_flops(op.attrs, function, op, sizes)
        case Conv():
            y = {"conv": op.results[0], "conv_input": op.operands[0]}.get(op.kind, op.operands[-1])
            return 2 * sizes.local_elements(function.types[y]) * products(op, function, sizes)
        case GroupedDot():
            weight = function.types[op.operands[1]]
            return 2 * chosen_rows(op.attrs, function, op, sizes) * matrix_elements(weight, sizes)
        case GroupedOuter():
            weight = function.types[op.results[0]]
            return 2 * chosen_rows(op.attrs, function, op, sizes) * matrix_elements(weight, sizes)
        case _:
            return 0


def products(op: Op, function: Function, sizes: Sizes) -> int:
    """The products that make one number of a convolution, on one rank."""
    assert isinstance(op.attrs, Conv)
    kinds = [function.types[value] for value in (*op.operands, *op.results)]
    count = 1
    for name in (*op.attrs.taps, *op.attrs.contract):
        (dim, *_) = (dim for kind in kinds for dim in kind.dims if dim.name == name)
        count *= sizes.size(name) // sizes.mesh.extent(dim.axes)
    return count


def recur_flops(attrs: Recur, function: Function, op: Op, sizes: Sizes) -> int:
    """Of a recurrence in chunks: pairs within a chunk, and the state written and read.

    The delta rule solves for what is written first, which is as much again; the gradient of the
    one is three recurrences, of the other six.
    """
    v = function.types[op.operands[2]]
    backward = isinstance(attrs, RecurGrad)
    delta = len(op.operands) - backward > 4
    tokens = sizes.local_elements(v.without((attrs.value,)))
    key, value = sizes.size(attrs.dim), sizes.local_elements(v) // tokens
    one = tokens * (4 * key * value + CHUNK * (key + value))
    return one * (3 if backward else 1) * (1 + delta)


def attend_flops(attrs: Attend, q: Type, sizes: Sizes) -> int:
    """Two products of each query with each key that it sees; the gradient has five.

    The queries of a rank see as many keys on average as all do, as they do where a causal sequence
    is dealt in zig-zag.
    """
    twice = isinstance(attrs, AttendGrad)
    width, wide = sizes.size(attrs.dim), sizes.size(attrs.width)
    each = 2 * (3 * width + 2 * wide if twice else width + wide)
    queries, keys = sizes.size(attrs.along), sizes.size(attrs.over)
    rows = sizes.local_elements(q.without((attrs.dim,)))
    return rows * each * seen_pairs(attrs, queries, keys) // queries


def seen_pairs(attrs: Attend, queries: int, keys: int) -> int:
    """How many pairs of a query and a key that it sees there are; of a causal mask alone half."""
    window, first = attrs.window, attrs.first
    if not window:
        return queries * keys // 2 if attrs.mask == "causal" else queries * keys
    behind = within(window, first + queries) - within(window, first)
    if attrs.mask == "causal":
        return behind
    ahead = within(window, keys - first) - within(window, keys - first - queries)
    return behind + ahead - queries


def within(window: int, stop: int) -> int:
    """The sum of min(p + 1, window) over p below `stop`."""
    short = min(window, stop)
    return short * (short + 1) // 2 + (stop - short) * window


def chosen_rows(attrs: GroupedDot | GroupedOuter, function: Function, op: Op, sizes: Sizes) -> int:
    """How many rows of a value in expert layout are in use, if all experts are chosen alike."""
    rows, index = function.types[op.operands[0]], function.types[op.operands[2]]
    stop = rows.names.index(attrs.rows) + 1
    room = sizes.local_elements(rows.placed(rows.dims[:stop]))
    return room // sizes.mesh.extent(own_axes(rows.dim(attrs.rows), index, attrs.along))


def matrix_elements(weight: Type, sizes: Sizes) -> int:
    """Elements of one expert's matrix on one rank; experts are the first dim."""
    return sizes.local_elements(weight.placed(weight.dims[1:]))
