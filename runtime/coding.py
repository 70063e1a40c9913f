"""Codes and scales of a part of a parameter, out of the parameter's own values.

A part of the codes, or of the scales, follows from those values that its whole blocks hold, so a
rank that has the codes of half a block rounds the whole block and keeps its half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import prod
from typing import TypeAlias

import msgspec
import torch
from torch import Tensor

from fllmc.ir.coded import CODES, blocks_dim, codes_dim, owner_name
from fllmc.ir.program import Parameter
from fllmc.kernels import torch_ops as kernels
from fllmc.runtime.checkpoint.boxes import Shape
from fllmc.runtime.parts import Part

Read: TypeAlias = "Callable[[tuple[slice, ...]], Tensor]"
"""Gives a slice of the parameter's own values."""

_AT_ONCE = 1 << 24  # elements, so that what is made on the way stays small


class Blocks(msgspec.Struct, frozen=True):
    """How a part lies in a parameter of `shape`: blocks of `block` along its dim `at`, in `bits`.

    `each` is how many elements along it a position of the part stands for.
    """

    name: str
    shape: Shape
    at: int
    block: int
    bits: int
    each: int


def blocks_of(part: Part, parameter: Parameter) -> Blocks:
    """How a part of codes or scales lies in the parameter that they are of."""
    along, bits, block = parameter.along, parameter.bits, parameter.block
    holds_codes = parameter.holds == CODES
    at = part.dims.index(codes_dim(along, bits) if holds_codes else blocks_dim(along, block))
    each = 8 // bits if holds_codes else block
    shape = tuple(n * each if d == at else n for d, n in enumerate(part.shape))
    name = part.name.removesuffix(parameter.name.removeprefix(owner_name(parameter)))
    return Blocks(name, shape, at, block, bits, each)


def fill_coded(out: Tensor, part: Part, parameter: Parameter, read: Read) -> None:
    """Fill a part of codes or scales by what `read` gives of the parameter."""
    how, holds_codes = blocks_of(part, parameter), parameter.holds == CODES
    for piece in pieces(part.slices, how):
        first, last = piece[how.at].start * how.each, piece[how.at].stop * how.each
        start, stop = first // how.block * how.block, -(-last // how.block) * how.block
        wanted = tuple(slice(start, stop) if d == how.at else s for d, s in enumerate(piece))
        codes, scales = quantized(read(wanted), how)
        found = (codes if holds_codes else scales).narrow(
            how.at, (first - start) // how.each, (last - first) // how.each
        )
        inside = zip(piece, part.offsets, strict=True)
        out[tuple(slice(s.start - o, s.stop - o) for s, o in inside)].copy_(found)


def pieces(slices: tuple[slice, ...], how: Blocks) -> Iterator[tuple[slice, ...]]:
    """The slices cut along the longest dim but that of blocks, of no more than so many elements."""
    extents = [s.stop - s.start for s in slices]
    others = [d for d in range(len(extents)) if d != how.at]
    if not others or not prod(extents):
        yield slices
        return
    cut = max(others, key=lambda d: extents[d])
    inner = prod(extents) // extents[cut] * how.each
    step = max(1, _AT_ONCE // inner)
    for start in range(slices[cut].start, slices[cut].stop, step):
        stop = min(start + step, slices[cut].stop)
        yield tuple(slice(start, stop) if d == cut else s for d, s in enumerate(slices))


def quantized(value: Tensor, how: Blocks) -> tuple[Tensor, Tensor]:
    """The codes and scales of whole blocks."""
    packed, shape = how.block * how.bits // 8, list(value.shape)
    count = shape[how.at] // how.block
    blocks = prod(shape[: how.at]) * count
    value = value.contiguous().view(blocks, how.block, -1)
    kind = torch.int8 if how.bits == 8 else torch.uint8
    codes = value.new_empty((blocks, packed, value.shape[2]), dtype=kind)
    scales = value.new_empty((blocks, value.shape[2]), dtype=torch.float32)
    kernels.quantize(value, how.bits, out=(codes, scales))
    shape[how.at] = count * packed
    whole = codes.view(shape)
    shape[how.at] = count
    return whole, scales.view(shape)
