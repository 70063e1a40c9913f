"""What each local op does to one rank's arrays, in plain numpy and float64.

Arrays are in the layout order of their types. A rule takes the attributes, where it runs, and the
operands' local arrays; it gives the local result, or a tuple of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from fllmc.ir import ops, philox
from fllmc.ir.evaluate_attention import attend, attend_grad, rope
from fllmc.ir.evaluate_blockwise import dequantize, quantize
from fllmc.ir.evaluate_convolution import conv, conv_input, conv_weight
from fllmc.ir.evaluate_experts import (
    combine,
    dispatch,
    grouped_dot,
    grouped_outer,
    tally,
    top_k,
)
from fllmc.ir.evaluate_parts import Array, Here, as_stored
from fllmc.ir.evaluate_recurrence import recur, recur_grad
from fllmc.ir.types import Type

LocalRule: TypeAlias = Callable[..., "Array | tuple[Array, ...]"]


def aligned(array: Array, names: Sequence[str], wanted: Sequence[str]) -> Array:
    """The array with its dims in the wanted order, and length 1 for those that it lacks."""
    order = [names.index(name) for name in wanted if name in names]
    lengths = [array.shape[names.index(name)] if name in names else 1 for name in wanted]
    return array.transpose(order).reshape(lengths)


def elementwise(function: Callable[..., Any]) -> LocalRule:
    """The rule that applies a numpy function to operands broadcast by dim name."""

    def rule(attrs: ops.Attrs, here: Here, *arrays: Array) -> Array:
        wanted = here.results[0].names
        kinds = zip(arrays, here.operands, strict=True)
        return np.asarray(function(*(aligned(a, kind.names, wanted) for a, kind in kinds)))

    return rule


def identity(attrs: ops.Attrs, here: Here, x: Array) -> Array:
    """The operand itself: rename, cast and stop do not change values."""
    return x


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)) without overflow."""
    return np.exp(-np.logaddexp(0.0, -x))


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def silu_grad(d: Array, x: Array) -> Array:
    """d times the derivative of silu."""
    s = sigmoid(x)
    return d * s * (1.0 + x * (1.0 - s))


def mul_add(base: Array, a: Array, b: Array) -> Array:
    """base + a * b."""
    return base + a * b


def mul_sub(base: Array, a: Array, b: Array) -> Array:
    """base - a * b."""
    return base - a * b


def rsqrt(x: Array) -> Array:
    """1 / sqrt(x)."""
    return 1.0 / np.sqrt(x)


def erf(x: Array) -> Array:
    """The error function."""
    return np.asarray(np.frompyfunc(math.erf, 1, 1)(x), dtype=np.float64)


def add_all(*arrays: Array) -> Array:
    """The sum, in order."""
    return reduce(np.add, arrays)


def transpose(attrs: ops.Transpose, here: Here, x: Array) -> Array:
    """The dims in another order."""
    return aligned(x, here.operands[0].names, attrs.order)


def fill(attrs: ops.Fill, here: Here) -> Array:
    """A constant."""
    (kind,) = here.results
    return as_stored(kind, np.full(here.sizes.local_shape(kind), attrs.value))


def number(attrs: ops.Number, here: Here, index: Array) -> Array:
    """Indices as numbers."""
    return index.astype(np.float64)


def iota(attrs: ops.Iota, here: Here) -> Array:
    """This rank's global positions along the dim."""
    return here.positions(attrs.dim) // attrs.each + attrs.first


def random(attrs: ops.Random, here: Here, seed: Array, samples: Array, *layer: Array) -> Array:
    """Uniform numbers by sample, layer, place and global position."""
    numbers = element_numbers(here, here.results[0])
    leading = samples.reshape((-1, *(1 for _ in numbers.shape)))
    at = philox.Draw(int(seed), attrs.place, leading, int(layer[0]) if layer else 0)
    return np.asarray(philox.uniform_at(at, numbers[None], philox.NUMPY))


def element_numbers(here: Here, kind: Type) -> Array:
    """The global row-major numbers of this rank's elements within all dims but the first."""
    numbers = np.zeros((), dtype=np.int64)
    for dim in kind.dims[1:]:
        numbers = numbers[..., None] * here.sizes.size(dim.name) + here.positions(dim)
    return numbers


def dot(attrs: ops.Dot, here: Here, a: Array, b: Array) -> Array:
    """The sum over the contracted dims of the product."""
    left, right = (kind.names for kind in here.operands)
    label = {name: number for number, name in enumerate(dict.fromkeys((*left, *right)))}
    wanted = [label[name] for name in here.results[0].names]
    given = (a, [label[name] for name in left], b, [label[name] for name in right])
    return np.asarray(np.einsum(*given, wanted, optimize=True))


def places(here: Here, attrs: ops.Reduce) -> tuple[int, ...]:
    """Where the reduced dims stand."""
    return tuple(here.operands[0].names.index(name) for name in attrs.dims)


def reduce_sum(attrs: ops.ReduceSum, here: Here, x: Array) -> Array:
    """The sum over dims."""
    return np.asarray(x.sum(axis=places(here, attrs)))


def reduce_max(attrs: ops.ReduceMax, here: Here, x: Array) -> Array:
    """The maximum over dims."""
    return np.asarray(x.max(axis=places(here, attrs)))


def take(attrs: ops.Take, here: Here, table: Array, index: Array) -> Array:
    """Rows of the table; zeros for those that this rank does not hold."""
    kind = here.operands[0]
    rows = np.moveaxis(table, kind.names.index(attrs.dim), 0)
    near = index - here.first(kind.dim(attrs.dim))
    held = (near >= 0) & (near < len(rows))
    found = rows[np.where(held, near, 0)]
    return np.where(
        held.reshape((*held.shape, *(1 for _ in rows.shape[1:]))), found, np.zeros_like(found)
    )


def reindex(attrs: ops.Reindex, here: Here, index: Array) -> Array:
    """The positions within the stretch."""
    return index - attrs.first


def put(attrs: ops.Put, here: Here, index: Array, value: Array) -> Array:
    """Values added up at their rows; those of rows held elsewhere are dropped."""
    (result,), (positions, kind) = here.results, here.operands
    rest = result.names[1:]
    values = aligned(value, kind.names, (*positions.names, *rest))
    values = values.reshape((index.size, *values.shape[index.ndim :]))
    near = index.reshape(-1) - here.first(attrs.dim)
    held = (near >= 0) & (near < here.extent(attrs.dim))
    total = np.zeros(here.sizes.local_shape(result), dtype=value.dtype)
    np.add.at(total, near[held], values[held])
    return total


def dot_add(attrs: ops.DotAdd, here: Here, base: Array, a: Array, b: Array) -> Array:
    """The base plus the contraction of the other two."""
    return base + dot(attrs, here._replace(operands=here.operands[1:]), a, b)


def put_add(attrs: ops.PutAdd, here: Here, base: Array, index: Array, value: Array) -> Array:
    """The base plus the values put at their rows."""
    return base + put(attrs, here._replace(operands=here.operands[1:]), index, value)


def pick(attrs: ops.Pick, here: Here, x: Array, index: Array) -> Array:
    """The element at each index; zero where this rank does not hold it."""
    kind, positions = here.operands
    last = np.moveaxis(x, kind.names.index(attrs.dim), -1)
    near = aligned(index, positions.names, here.results[0].names) - here.first(kind.dim(attrs.dim))
    # Dims that the index alone has stand last, together: so many are picked for each of the others.
    shape = here.sizes.local_shape(here.results[0])
    near = np.broadcast_to(near, shape).reshape((*last.shape[:-1], -1))
    held = (near >= 0) & (near < last.shape[-1])
    found = np.take_along_axis(last, np.where(held, near, 0), axis=-1)
    return np.where(held, found, np.zeros_like(found)).reshape(shape)


def spread(attrs: ops.Spread, here: Here, value: Array, index: Array) -> Array:
    """The value at each index along a new last dim, zeros elsewhere."""
    kind, positions = here.operands
    at = aligned(index, positions.names, kind.names)[..., None]
    rows = value[..., None]
    return np.where(at == here.positions(attrs.dim), rows, np.zeros_like(rows))


def shift(attrs: ops.Shift, here: Here, x: Array) -> Array:
    """The stretch that is there, zeros around it."""
    at = here.operands[0].names.index(attrs.dim)
    first, start, count = attrs.stretches(here.sizes)
    out = np.zeros(here.sizes.local_shape(here.results[0]), x.dtype)
    lead = (slice(None),) * at
    out[(*lead, slice(first, first + count))] = x[(*lead, slice(start, start + count))]
    return out


def record(attrs: ops.Record, here: Here, state: Array, value: Array) -> Array:
    """A zero; the backward pass gives the value."""
    return np.zeros(())


def chunk(attrs: ops.Chunk, here: Here, x: Array) -> Array:
    """Chunks in front; this rank deals out what it holds."""
    at = here.operands[0].names.index(attrs.dim)
    count = here.sizes.size(attrs.over)
    dealt = x.reshape((*x.shape[:at], x.shape[at] // count, count, *x.shape[at + 1 :]))
    return np.moveaxis(dealt, at + 1, 0)


def unchunk(attrs: ops.Unchunk, here: Here, x: Array) -> Array:
    """Chunks taken up again."""
    at = here.results[0].names.index(attrs.dim)
    return np.moveaxis(x, 0, at + 1).reshape(here.sizes.local_shape(here.results[0]))


LOCAL: dict[type[ops.Attrs], LocalRule] = {
    ops.Add: elementwise(np.add),
    ops.AddN: elementwise(add_all),
    ops.Attend: attend,
    ops.AttendGrad: attend_grad,
    ops.Cast: identity,
    ops.Chunk: chunk,
    ops.Combine: combine,
    ops.Conv: conv,
    ops.ConvInput: conv_input,
    ops.ConvWeight: conv_weight,
    ops.Cos: elementwise(np.cos),
    ops.Dequantize: dequantize,
    ops.Dispatch: dispatch,
    ops.Div: elementwise(np.true_divide),
    ops.Dot: dot,
    ops.DotAdd: dot_add,
    ops.DotAdd: dot_add,
    ops.Erf: elementwise(erf),
    ops.Exp: elementwise(np.exp),
    ops.Fill: fill,
    ops.FromHost: identity,
    ops.GroupedDot: grouped_dot,
    ops.GroupedOuter: grouped_outer,
    ops.Iota: iota,
    ops.Number: number,
    ops.Less: elementwise(np.less),
    ops.Log: elementwise(np.log),
    ops.Maximum: elementwise(np.maximum),
    ops.Minimum: elementwise(np.minimum),
    ops.Mul: elementwise(np.multiply),
    ops.MulAdd: elementwise(mul_add),
    ops.MulSub: elementwise(mul_sub),
    ops.Neg: elementwise(np.negative),
    ops.Pick: pick,
    ops.Record: record,
    ops.Shift: shift,
    ops.Pow: elementwise(np.power),
    ops.Put: put,
    ops.PutAdd: put_add,
    ops.PutAdd: put_add,
    ops.Quantize: quantize,
    ops.Random: random,
    ops.Recur: recur,
    ops.RecurGrad: recur_grad,
    ops.ReduceMax: reduce_max,
    ops.ReduceSum: reduce_sum,
    ops.Reindex: reindex,
    ops.Rename: identity,
    ops.Rope: rope,
    ops.Rsqrt: elementwise(rsqrt),
    ops.Sigmoid: elementwise(sigmoid),
    ops.Silu: elementwise(silu),
    ops.SiluGrad: elementwise(silu_grad),
    ops.Sin: elementwise(np.sin),
    ops.Spread: spread,
    ops.Sqrt: elementwise(np.sqrt),
    ops.Stop: identity,
    ops.Sub: elementwise(np.subtract),
    ops.Take: take,
    ops.Tally: tally,
    ops.Tanh: elementwise(np.tanh),
    ops.ToHost: identity,
    ops.TopK: top_k,
    ops.Transpose: transpose,
    ops.Unchunk: unchunk,
    ops.Where: elementwise(np.where),
}
