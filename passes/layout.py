"""layout: sharded -> plan. Give every op operands that it can read in place.

A `dot` becomes one (batched) matrix multiplication without copies when, in each operand's memory
order, its batch, own and contracted dims stand in runs, in one order on both sides, and the last
dim isn't a batch dim. `attend` wants [batch..., along, heads, dim] or [batch..., heads, along,
dim] with batch dims in one order, `take` its dim first or last, `put` its index dims first. Where
that doesn't hold, a `transpose` is inserted:

    %2 = dot{contract=[seq]}(%0: [seq, embed, batch], %1)
    ->
    %2 = transpose{order=[batch, embed, seq]}(%0); %3 = dot{contract=[seq]}(%2, %1)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import (
    Attend,
    AttendGrad,
    Conv,
    Dot,
    DotAdd,
    Put,
    Recur,
    RecurGrad,
    Take,
    Transpose,
)
from fllmc.ir.ops.convolution import conv_parts
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Type
from fllmc.passes.base import Context, Pass


class DotDims(msgspec.Struct, frozen=True):
    """The dims of a dot by their part in it, each in the order of memory."""

    batch: tuple[str, ...]
    own_a: tuple[str, ...]
    own_b: tuple[str, ...]
    contract: tuple[str, ...]


def dot_dims(attrs: Dot, a: Type, b: Type) -> DotDims:
    """Sort the dims of a dot's operands: batch and contracted dims in a's order."""
    return DotDims(
        tuple(name for name in a.names if name in b.names and name not in attrs.contract),
        tuple(name for name in a.names if name not in b.names),
        tuple(name for name in b.names if name not in a.names),
        tuple(name for name in a.names if name in attrs.contract),
    )


def runs(names: Sequence[str], groups: Sequence[tuple[str, ...]]) -> bool:
    """Whether the names are these groups, each an unbroken run in its order, in any sequence."""
    left = [group for group in groups if group]
    position = 0
    while left:
        found = [g for g in left if tuple(names[position : position + len(g)]) == g]
        if not found:
            return False
        left.remove(found[0])
        position += len(found[0])
    return position == len(names)


def dot_orders(attrs: Dot, a: Type, b: Type) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Memory orders of a and b in which the dot is one matrix multiplication."""
    dims = dot_dims(attrs, a, b)
    order_a, order_b = a.names, b.names
    fits_a = runs(a.names, (dims.batch, dims.own_a, dims.contract))
    if not fits_a or (dims.batch and a.names[-1] in dims.batch):
        order_a = (*dims.batch, *dims.own_a, *dims.contract)
    fits_b = runs(b.names, (dims.batch, dims.own_b, dims.contract))
    if not fits_b or (dims.batch and b.names[-1] in dims.batch):
        order_b = (*dims.batch, *dims.contract, *dims.own_b)
    return order_a, order_b


def attend_order(attrs: Attend, heads: str, kind: Type, batch: Sequence[str]) -> tuple[str, ...]:
    """The memory order nearest to the given one that the attention kernels take."""
    along = attrs.along if attrs.along in kind.names else attrs.over
    inner = ((along, heads, attrs.dim), (heads, along, attrs.dim))
    found = kind.names[len(batch) :]
    return (*batch, *(found if found in inner else inner[0]))


def recur_orders(attrs: Recur, kinds: Sequence[Type]) -> list[tuple[str, ...]]:
    """The memory orders nearest to the given ones in which batch dims are a run."""
    found = attrs.orders(kinds[2])
    wanted = [found.key, found.key, found.value, found.head, found.head, found.head]
    if isinstance(attrs, RecurGrad):
        wanted[len(kinds) - 1] = found.value
    count = len(found.rest)
    return [
        kind.names if kind.names[:count] == found.rest else order
        for kind, order in zip(kinds, wanted, strict=False)
    ]


def conv_orders(attrs: Conv, kinds: Sequence[Type]) -> list[tuple[str, ...]]:
    """The memory orders nearest to the given ones in which dims of one part are a run."""
    parts = conv_parts(attrs, kinds)
    return [
        kind.names if runs(kind.names, groups) else tuple(n for group in groups for n in group)
        for kind, groups in zip(kinds, parts, strict=False)
    ]


def attend_orders(attrs: Attend, kinds: Sequence[Type]) -> list[tuple[str, ...]]:
    """The memory orders of attention's operands, or of its gradient's."""
    inner = (attrs.along, attrs.heads, attrs.dim)
    batch = [name for name in kinds[0].names if name not in inner]
    q = attend_order(attrs, attrs.heads, kinds[0], batch)
    k = attend_order(attrs, attrs.kv_heads, kinds[1], batch)
    o, v = (tuple(attrs.width if n == attrs.dim else n for n in order) for order in (q, k))
    lse = tuple(name for name in q if name != attrs.dim)
    extras = [(attrs.heads,)] * attrs.sinks + [(attrs.heads, attrs.bias)] * bool(attrs.bias)
    grads = [o, lse, o] * isinstance(attrs, AttendGrad)
    starts = tuple(name for name in q if name not in (attrs.heads, attrs.dim))
    return [q, k, v, *extras, *grads, *[starts] * attrs.documents]


def wanted_orders(op: Op, kinds: Sequence[Type]) -> list[tuple[str, ...]]:
    """The memory order that an op wants of each operand."""
    orders = [kind.names for kind in kinds]
    match op.attrs:
        case DotAdd():
            orders[1:] = dot_orders(op.attrs, kinds[1], kinds[2])
        case Dot():
            orders[:] = dot_orders(op.attrs, kinds[0], kinds[1])
        case Attend():  # the gradient's definition is a subclass
            orders[:] = attend_orders(op.attrs, kinds)
        case Recur():
            orders[:] = recur_orders(op.attrs, kinds)
        case Conv():
            orders[:] = conv_orders(op.attrs, kinds)
        case Take(dim=dim):
            names = kinds[0].names
            if dim not in (names[0], names[-1]):
                orders[0] = (dim, *(name for name in names if name != dim))
        case Put():
            index, value = kinds[-2:]
            rest = tuple(name for name in value.names if name not in index.names)
            orders[-1] = (*index.names, *rest)
        case _:
            pass
    return orders


def laid_out(function: Function, program: Program) -> Function:
    """The function with a transpose before each op that needs one; result types stay."""
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for op in function.ops:
        b.path, b.span = op.path, op.span
        operands = [mapping[value] for value in op.operands]
        orders = wanted_orders(op, [b.types[value] for value in operands])
        given = [
            value if b.types[value].names == order else b.one(Transpose(order), value)
            for value, order in zip(operands, orders, strict=True)
        ]
        results = list(b.emit(op.attrs, *given))
        for position, (value, old) in enumerate(zip(results, op.results, strict=True)):
            order = function.types[old].names
            if b.types[value].names != order:
                results[position] = b.one(Transpose(order), value)
        mapping.update(zip(op.results, results, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


class Layout(Pass, frozen=True):
    """Insert the transposes that matrix multiplications and kernels need."""

    name: ClassVar[str] = "layout"
    takes: ClassVar[Level] = "sharded"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """Lay out every function."""
        del cx
        functions = tuple(laid_out(function, program) for function in program.functions)
        return msgspec.structs.replace(program, level="plan", functions=functions)
