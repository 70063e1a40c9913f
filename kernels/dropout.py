"""Uniform numbers from counters: the same on every mesh and when computed again.

The numbers are those of `fllmc.ir.philox.uniform_at`, bit for bit. Its ten rounds are worked in
place here, a cache-sized tile at a time, and leave out what does not reach the first word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from math import prod

import torch
from torch import Tensor

from fllmc.ir.philox import MASK, ROUNDS

_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)  # of Philox4x32, for the counter's words 0 and 2
_WEYL = (0x9E37_79B9, 0xBB67_AE85)  # what each round adds to the two key words
_CPU_TILE = 1 << 16  # int64 tiles that stay in cache, and are large enough for two threads
_DEVICE_TILE = 1 << 22  # enough work for a launch, 160 MiB of temporaries


def random(
    seed: int | float,
    samples: Tensor,
    layer: Tensor | None,
    place: int,
    starts: Sequence[int],
    shape: Sequence[int],
    out: Tensor,
) -> None:
    """Fill out [batch, ...local] with uniform multiples of 2**-24 in [0, 1).

    `samples` [batch] holds global sample numbers. `shape` holds the global sizes of the further
    dims and `starts` where out begins in each. `seed` is whole and below 2**53.
    """
    if out.numel() == 0:
        return
    key = (int(seed) & MASK, ((int(seed) >> 32) + place * _WEYL[0]) & MASK)
    batch, count = len(samples), prod(out.shape[1:])
    flat = out.view(batch, -1) if out.is_contiguous() else out.new_empty(batch, count)
    words = _sample_words(samples, layer)
    runs = _merged(tuple(out.shape[1:]), starts, shape)
    for rows, columns in _tiles(batch, count, out.device):
        elements = _elements(runs, columns, out.device)
        found = _first_word(elements, [word[rows] for word in words], key)
        torch.mul(found.bitwise_right_shift_(8), 2.0**-24, out=flat[rows, columns])
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def random_parts(
    seed: int | float,
    samples: Tensor,
    layer: Tensor | None,
    place: int,
    positions: Sequence[Sequence[range]],
    shape: Sequence[int],
    out: Tensor,
) -> None:
    """random, where out holds the given stretches of positions of each further dim."""
    for held in product(*positions):
        part = out
        for dim, (stretch, stretches) in enumerate(zip(held, positions, strict=True), 1):
            before = sum(len(s) for s in stretches[: stretches.index(stretch)])
            part = part.narrow(dim, before, len(stretch))
        starts = [stretch.start for stretch in held]
        random(seed, samples, layer, place, starts, shape, part)


def _sample_words(samples: Tensor, layer: Tensor | None) -> tuple[Tensor, Tensor]:
    """Counter words 2 and 3 of each sample, as [batch, 1]."""
    top = (samples >> 32) & 0xFFFF
    if layer is not None:
        top = top | ((layer & 0xFFFF) << 16)
    return (samples & MASK)[:, None], top[:, None]


def _merged(
    local: Sequence[int], starts: Sequence[int], shape: Sequence[int]
) -> list[tuple[int, int, int]]:
    """(length, start, step) of the dims, a dim that is held whole merged into the one before it."""
    runs: list[tuple[int, int, int]] = []
    step = 1
    for size, start, whole in zip(reversed(local), reversed(starts), reversed(shape), strict=True):
        if runs and runs[-1][0] * runs[-1][2] == step and runs[-1][1] == 0:
            length, _, inner = runs.pop()
            runs.append((size * length, start * length, inner))
        else:
            runs.append((size, start, step))
        step *= whole
    return runs


def _elements(runs: list[tuple[int, int, int]], columns: slice, device: torch.device) -> Tensor:
    """The global row-major numbers of the local elements `columns` of a sample."""
    rest = torch.arange(columns.start, columns.stop, device=device)
    if not runs:
        return rest
    base = sum(start * step for _, start, step in runs)
    if len(runs) == 1:
        return rest.mul_(runs[0][2]).add_(base)
    numbers = torch.full_like(rest, base)
    for length, _, step in runs[:-1]:
        numbers.add_(rest % length, alpha=step)
        rest = rest.div_(length, rounding_mode="floor")
    return numbers.add_(rest, alpha=runs[-1][2])


def _tiles(batch: int, count: int, device: torch.device) -> Iterator[tuple[slice, slice]]:
    tile = _CPU_TILE if device.type == "cpu" else _DEVICE_TILE
    width = min(count, tile)
    height = max(1, tile // width)
    for row in range(0, batch, height):
        for column in range(0, count, width):
            last = min(column + width, count)
            yield slice(row, min(row + height, batch)), slice(column, last)


def _first_word(elements: Tensor, words: Sequence[Tensor], key: tuple[int, int]) -> Tensor:
    """Word 0 of Philox4x32-10 at counters (element low, element high, words...): [rows, columns].

    c1 and c3 are whole products, of which the low 32 bits count: the mask of the round after drops
    the others. Words 0 and 2 start as a row and a column, and meet in the second round.
    """
    (c0, c1), (c2, c3) = (elements & MASK, elements >> 32), words
    k0, k1 = key
    for _ in range(ROUNDS - 1):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = _mixed(p1, c1, k0), p1, _mixed(p0, c3, k1), p0
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return _mixed(c2 * _MULTIPLIERS[1], c1, k0)


def _mixed(product: Tensor, word: Tensor, key: int) -> Tensor:
    """The product's high word, xor a word, xor the key; fresh, below 2**32."""
    return (product >> 32).bitwise_xor(word).bitwise_xor_(key).bitwise_and_(MASK)
