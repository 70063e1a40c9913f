"""Convolutions in plain numpy: a contraction for each tap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from fllmc.ir.evaluate_parts import Array, Here
from fllmc.ir.ops import Conv, ConvInput, ConvWeight


def conv(attrs: Conv, here: Here, x: Array, w: Array) -> Array:
    """The sum over taps of the positions that each meets, times its weight."""
    x_names, w_names = (kind.names for kind in here.operands)
    out = np.zeros(here.sizes.local_shape(here.results[0]))
    names = here.results[0].names
    back = dict(zip(attrs.to, attrs.along, strict=True))
    plain = tuple(back.get(name, name) for name in names)
    left = [name for name in w_names if name not in attrs.taps]
    for taps, met, into in meetings(attrs, here):
        pair = (x[within(x_names, met, attrs.along)], w[within(w_names, taps, attrs.taps)])
        out[within(names, into, attrs.to)] += contracted(pair, (x_names, left), plain)
    return out


def conv_input(attrs: ConvInput, here: Here, dy: Array, w: Array) -> Array:
    """Each tap's share goes back to the positions that it met."""
    names = here.results[0].names
    back = dict(zip(attrs.to, attrs.along, strict=True))
    dy_names = tuple(back.get(name, name) for name in here.operands[0].names)
    out = np.zeros(here.sizes.local_shape(here.results[0]))
    for taps, met, into in meetings(attrs, here):
        part = dy[within(here.operands[0].names, into, attrs.to)]
        weight = w[within(here.operands[1].names, taps, attrs.taps)]
        w_names = [name for name in here.operands[1].names if name not in attrs.taps]
        out[within(names, met, attrs.along)] += contracted(
            (part, weight), (dy_names, w_names), names
        )
    return out


def conv_weight(attrs: ConvWeight, here: Here, x: Array, dy: Array) -> Array:
    """Of each tap, what it met times the cotangent there."""
    names = here.results[0].names
    back = dict(zip(attrs.to, attrs.along, strict=True))
    x_names, y_names = (kind.names for kind in here.operands)
    kept = [name for name in names if name not in attrs.taps]
    out = np.zeros(here.sizes.local_shape(here.results[0]))
    for taps, met, into in meetings(attrs, here):
        given = x[within(x_names, met, attrs.along)]
        part = dy[within(y_names, into, attrs.to)]
        plain = tuple(back.get(name, name) for name in y_names)
        out[within(names, taps, attrs.taps)] = contracted((given, part), (x_names, plain), kept)
    return out


Places = tuple[slice | int, ...]


def meetings(attrs: Conv, here: Here) -> Iterator[tuple[Places, Places, Places]]:
    """For every tap: where it stands, the positions of x that it meets, and in which windows."""
    size = here.sizes.size
    counts = [range(size(name)) for name in attrs.taps]
    for taps in product(*counts):
        there: list[slice] = []
        into: list[slice] = []
        for tap, (along, _, to, stride, before) in zip(taps, attrs.windows, strict=True):
            shift = tap - before
            first = max(0, -(shift // stride))
            last = min(size(to), (size(along) - 1 - shift) // stride + 1)
            count = max(0, last - first)
            start = first * stride + shift
            stop = start + (count - 1) * stride + 1
            there.append(slice(start, stop, stride) if count else slice(0))
            into.append(slice(first, first + count))
        yield taps, tuple(there), tuple(into)


def within(names: Sequence[str], places: Places, dims: Sequence[str]) -> Places:
    """An index with these places of these dims."""
    return tuple(places[dims.index(name)] if name in dims else slice(None) for name in names)


def contracted(
    arrays: Sequence[Array], names: Sequence[Sequence[str]], result: Sequence[str]
) -> Array:
    """einsum by names of dims."""
    letters = {name: n for n, name in enumerate(dict.fromkeys((*names[0], *names[1], *result)))}
    given = [x for a, n in zip(arrays, names, strict=True) for x in (a, [letters[i] for i in n])]
    found: Array = np.einsum(*given, [letters[name] for name in result])
    return found
