"""Our tensors as views of foreign ones: what is read of a file, and where in a tensor it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import TypeAlias

from torch import Tensor

from fllmc.ir.foreign import Factor, Part

Ranges: TypeAlias = Sequence[tuple[int, int]]
"""The first element and the one behind the last, for each dim."""

Fetch: TypeAlias = Callable[[tuple[slice, ...]], Tensor]
"""Gives a slice of a foreign tensor."""


def whole_of(part: Part) -> list[tuple[int, int]]:
    """All elements of a part, along our dims that are not led."""
    return [(0, size) for size in part.shape[len(part.lead) :]]


def read(part: Part, wanted: Ranges, fetch: Fetch) -> Tensor:
    """Elements of our tensor, along the dims that are not led. Fetches little beside them.

    The result may be a view of what was fetched, in any order of strides.
    """
    split = _split_ranges(part, wanted)
    bounds = [_bounds(axis, split, part.split) for axis in part.axes]
    given = fetch(tuple(slice(first, stop) for first, stop in bounds))
    view = _view(given, part, split, cut=True)
    held = [(0, size) if joined > 1 else None for size, joined in _sizes(part)]
    rest = [
        bound[1] - bound[0] if keep is None else keep[1]
        for bound, keep in zip(wanted, held, strict=True)
    ]
    view = view.reshape(rest)
    for dim, (keep, (first, stop)) in enumerate(zip(held, wanted, strict=True)):
        view = view if keep is None else view.narrow(dim, first, stop - first)
    return view


def write(part: Part, value: Tensor, foreign: Tensor) -> None:
    """Put a whole part where it stands in a whole foreign tensor."""
    split = [(0, size) for size in part.split]
    _view(foreign, part, split, cut=False).copy_(value.reshape(part.split))


def _sizes(part: Part) -> list[tuple[int, int]]:
    """Of each of our dims that are not led its size and how many split ones it is made of."""
    return list(zip(part.shape[len(part.lead) :], part.joined, strict=True))


def _split_ranges(part: Part, wanted: Ranges) -> list[tuple[int, int]]:
    """The ranges along split dims; a dim that is split is taken whole."""
    found: list[tuple[int, int]] = []
    for (first, stop), joined in zip(wanted, part.joined, strict=True):
        sizes = part.split[len(found) : len(found) + joined]
        found += [(first, stop)] if joined == 1 else [(0, size) for size in sizes]
    return found


def _bounds(axis: tuple[Factor, ...], split: Ranges, sizes: Sequence[int]) -> tuple[int, int]:
    """The range of a foreign dim that holds what is wanted, by its outermost factor."""
    if not axis:
        return 0, 1
    first, stop = _stretch(axis[0], split, sizes)
    inner = prod(factor.total for factor in axis[1:])
    return first * inner, stop * inner


def _stretch(factor: Factor, split: Ranges, sizes: Sequence[int]) -> tuple[int, int]:
    """The range of a factor that holds what is wanted, by the outermost dim in it."""
    if not factor.dims:
        return factor.start, factor.start + factor.length
    low, high = split[factor.dims[0]]
    inner = prod(sizes[dim] for dim in factor.dims[1:])
    return factor.start + low * inner, factor.start + high * inner


def _view(given: Tensor, part: Part, split: Ranges, cut: bool) -> Tensor:
    """Our split dims, in our order, of a foreign tensor, or of its slice within `_bounds`."""
    factors = [(f, cut and number == 0) for axis in part.axes for number, f in enumerate(axis)]
    stretches = [_stretch(factor, split, part.split) for factor, _ in factors]
    extents = [
        stop - first if done else factor.total
        for (factor, done), (first, stop) in zip(factors, stretches, strict=True)
    ]
    view = given.reshape(extents) if cut else given.view(extents)
    order: list[int] = []
    at = 0
    for (factor, done), (first, stop) in zip(factors, stretches, strict=True):
        if not done:
            view = view.narrow(at, first, stop - first)
        if not factor.dims:
            view = view.select(at, 0)
            continue
        lead = split[factor.dims[0]]
        inner = [part.split[dim] for dim in factor.dims[1:]]
        view = view.unflatten(at, [lead[1] - lead[0], *inner]) if inner else view
        for place, dim in enumerate(factor.dims):
            if place:
                low, high = split[dim]
                view = view.narrow(at + place, low, high - low)
        order += factor.dims
        at += len(factor.dims)
    return view.permute([order.index(dim) for dim in range(len(order))])
