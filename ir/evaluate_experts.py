"""What the ops of mixtures of experts do, in plain numpy."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from fllmc.ir import ops
from fllmc.ir.evaluate_parts import Array, Here, Parts
from fllmc.ir.ops.experts import own_axes
from fllmc.ir.types import Dim, Type


def top_k(attrs: ops.TopK, here: Here, x: Array) -> tuple[Array, Array]:
    """The largest values along the dim, and where they are."""
    last = np.moveaxis(x, here.operands[0].names.index(attrs.dim), -1)
    # Falling order by a stable sort of the negated values: of equal ones the first comes first.
    order = np.argsort(-last, axis=-1, kind="stable")[..., : here.sizes.size(attrs.to)]
    return np.take_along_axis(last, order, axis=-1), order.astype(np.int64)


def tally(attrs: ops.Tally, here: Here, index: Array) -> Array:
    """How often each of this rank's experts is chosen in each sequence."""
    chosen = index[..., None] == here.positions(attrs.experts)
    return chosen.sum(axis=(-3, -2)).astype(np.int64)


def row_numbers(
    here: Here, of: Sequence[Dim], along: str, choices: str, index: Array, chosen: Type
) -> Array:
    """The row of each choice [sequences, along * choices] within what the rank holds, or -1.

    Choices go over (experts, slots) as over one dim, row by row.
    """
    experts = here.sizes.size(chosen.index)
    flat = index.reshape(-1, index.shape[-2] * index.shape[-1])
    hot = (flat[..., None] == np.arange(experts)).astype(np.int64)
    before = np.take_along_axis(np.cumsum(hot, axis=1) - hot, flat[..., None], axis=-1)[..., 0]
    if len(of) == 2:
        slots = here.sizes.size(of[1].name)
        number, room = flat * slots + before, slots
        first, extent = here.first(of[0]) * room, here.extent(of[0]) * room
        number = np.where(before < slots, number, -1)
    else:
        stretch = flat.shape[1]  # of the part of the sequence that the rank holds
        groups = here.sizes.size(of[0].name) // (here.sizes.size(along) * here.sizes.size(choices))
        group = experts // groups
        totals = hot.sum(axis=1)
        starts = np.cumsum(totals, axis=-1) - totals
        starts -= np.repeat(starts[:, ::group], group, axis=-1)
        number = flat // group * stretch + np.take_along_axis(starts, flat, axis=-1) + before
        own, extent = own_axes(of[0], chosen, along), here.extent(of[0])
        first = here.sizes.mesh.position(here.coordinates, own) * extent
    near = number - first
    return np.where((near >= 0) & (near < extent), near, -1)


def dispatch(attrs: ops.Dispatch, here: Here, value: Array, index: Array) -> Array:
    """Each choice's row at its place, zeros elsewhere."""
    (kind,), chosen = here.results, here.operands[1]
    numbers = row_numbers(here, attrs.to, attrs.along, attrs.choices, index, chosen)
    shape = here.sizes.local_shape(kind)
    tokens = index.ndim if attrs.choices in here.operands[0].names else index.ndim - 1
    given = value if tokens == index.ndim else np.expand_dims(value, tokens)
    rest = value.shape[tokens:]
    given = np.broadcast_to(given, (*index.shape, *rest)).reshape((*numbers.shape, *rest))
    count = int(np.prod(shape[index.ndim - 2 : index.ndim - 2 + len(attrs.to)]))
    rows = np.zeros((len(numbers), count, *rest), dtype=value.dtype)
    sequence, choice = np.nonzero(numbers >= 0)
    rows[sequence, numbers[sequence, choice]] = given[sequence, choice]
    return rows.reshape(shape)


def combine(attrs: ops.Combine, here: Here, rows: Array, index: Array) -> Array:
    """Each choice's row, zero if it was dropped or lies elsewhere, added up over the choices."""
    kind, chosen = here.operands
    lead = index.ndim - 2
    of = kind.dims[lead : lead + len(attrs.of)]
    numbers = row_numbers(here, of, attrs.along, attrs.choices, index, chosen)
    rest = rows.shape[lead + len(of) :]
    flat = rows.reshape((len(numbers), -1, *rest))
    found = flat[np.arange(len(numbers))[:, None], np.maximum(numbers, 0)]
    held = (numbers >= 0).reshape((*numbers.shape, *(1 for _ in rest)))
    found = np.where(held, found, 0.0).reshape((*index.shape, *rest))
    return found if attrs.apart else np.asarray(found.sum(axis=lead + 1))


def runs(index: Array, experts: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, slice]]:
    """(sequence, expert, its rows) of all runs, for the experts of one rank, which are one group.

    Experts are counted from the first of them.
    """
    for sequence, chosen in enumerate(index.reshape(-1, index.shape[-2] * index.shape[-1])):
        start = 0
        for place, expert in enumerate(experts):
            total = int((chosen == expert).sum())
            yield sequence, place, slice(start, start + total)
            start += total


def grouped_dot(
    attrs: ops.GroupedDot, here: Here, rows: Array, weight: Array, index: Array
) -> Array:
    """Each run of rows times its expert's matrix."""
    (kind,), matrix = here.results, here.operands[1]
    shape = here.sizes.local_shape(kind)
    inner = [matrix.names.index(name) for name in attrs.contract]
    own = [n for n in range(1, weight.ndim) if n not in inner]
    lead = index.ndim - 2
    flat = rows.reshape((-1, rows.shape[lead], *rows.shape[lead + 1 :]))
    out = np.zeros((len(flat), *shape[lead:]), dtype=np.float64)
    matrices = weight.transpose((0, *inner, *own))
    for sequence, expert, run in runs(index, here.positions(matrix.dims[0])):
        out[sequence, run] = np.tensordot(flat[sequence, run], matrices[expert], len(inner))
    return out.reshape(shape)


def grouped_outer(attrs: ops.GroupedOuter, here: Here, a: Array, b: Array, index: Array) -> Array:
    """For each expert the sum over its rows of their outer products."""
    (kind,) = here.results
    total = np.zeros(here.sizes.local_shape(kind), dtype=np.float64)
    lead = index.ndim - 2
    left, right = (x.reshape((-1, *x.shape[lead:])) for x in (a, b))
    for sequence, expert, run in runs(index, here.positions(kind.dims[0])):
        total[expert] += np.tensordot(left[sequence, run], right[sequence, run], ((0,), (0,)))
    return total


def exchange_rows(
    attrs: ops.ExchangeRows, heres: Sequence[Here], operands: Sequence[Parts]
) -> tuple[Parts, ...]:
    """The rows in use, from where they stand at their tokens to where at their experts, or back."""
    given, index = operands
    mesh, (kind,) = heres[0].sizes.mesh, heres[0].results
    lead = len(heres[0].operands[1].dims) - 2
    experts = heres[0].sizes.size(heres[0].operands[1].index)
    found = [np.zeros(here.sizes.local_shape(kind)) for here in heres]
    for group in mesh.groups(attrs.axes):
        each = experts // len(group)
        for nearer, tokens in enumerate(group):
            near, far = (found, given) if attrs.back else (given, found)
            count = near[tokens].shape[0]
            mine = index[tokens][nearer * count : (nearer + 1) * count]
            for sequence in np.ndindex(mine.shape[:lead]):
                owner, start = mine[sequence].ravel() // each, 0
                whole = (nearer * count + sequence[0], *sequence[1:])
                for place, holder in enumerate(group):
                    total = int((owner == place).sum())
                    here, there = slice(start, start + total), slice(total)
                    if attrs.back:
                        near[tokens][(*sequence, here)] = far[holder][(*whole, there)]
                    else:
                        far[holder][(*whole, there)] = near[tokens][(*sequence, here)]
                    start += total
    return (tuple(found),)
