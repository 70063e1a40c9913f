"""Rotary positions (Su et al. 2021) by tables of cosines and sines."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor

Table = tuple[Tensor, Tensor]

_TILE = 1 << 17  # elements worked on at once on a CPU: the tile and its result stay in cache


def rope_table(
    seq: int,
    speeds: Sequence[float],
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    magnitude: float = 1.0,
) -> Table:
    """magnitude times cosines and sines [seq, pairs] of position * speed.

    Computed in float64; kept in float64 for float64 and in float32 for all others.
    """
    speed = torch.tensor(speeds, dtype=torch.float64)
    angle = torch.arange(seq, dtype=torch.float64)[:, None] * speed
    kept = torch.float64 if dtype == torch.float64 else torch.float32
    both = (angle.cos().mul_(magnitude), angle.sin().mul_(magnitude))
    return both[0].to(device, kept), both[1].to(device, kept)


def rope(
    x: Tensor,
    table: Table,
    along: int,
    dim: int,
    layout: Literal["half", "interleaved"] = "half",
    inverse: bool = False,
    behind: int = 0,
    *,
    out: Tensor,
) -> None:
    """Turn the pairs of `dim` by their position along `along`; `inverse` turns back.

    As many elements turn as the table has pairs for, behind the first `behind`; others are copied.
    `out` is as x and does not overlap it. Low precision is computed in float32 and rounded once.
    """
    width, size = 2 * table[0].shape[1], x.shape[dim]
    if width < size:
        for first, last in ((0, behind), (behind + width, size)):
            out.narrow(dim, first, last - first).copy_(x.narrow(dim, first, last - first))
        x, out = x.narrow(dim, behind, width), out.narrow(dim, behind, width)
    cos, sin = (_aligned(part, along, dim, x.dim()) for part in table)
    sign = -1.0 if inverse else 1.0
    if layout == "interleaved" and _complex(x, dim, cos) and _complex(out, dim, cos):
        turn = torch.complex(cos, sin * sign)
        for source, target, part in _tiles([_as_complex(x, dim), _as_complex(out, dim), turn]):
            torch.mul(source, part, out=target)
        return
    turned = _turn if x.dtype == cos.dtype else _turn_low
    given = [*_pairs(x, dim, layout), *_pairs(out, dim, layout), cos, sin]
    for a, b, out_a, out_b, cosine, sine in _tiles(given):
        turned(a, b, out_a, out_b, cosine, sine, sign)


def _turn(
    a: Tensor, b: Tensor, out_a: Tensor, out_b: Tensor, cos: Tensor, sin: Tensor, sign: float
) -> None:
    torch.mul(a, cos, out=out_a)
    out_a.addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=out_b)
    out_b.addcmul_(a, sin, value=sign)


def _turn_low(
    a: Tensor, b: Tensor, out_a: Tensor, out_b: Tensor, cos: Tensor, sin: Tensor, sign: float
) -> None:
    wide_a, wide_b = a.to(cos.dtype), b.to(cos.dtype)
    out_a.copy_((wide_a * cos).addcmul_(wide_b, sin, value=-sign))
    out_b.copy_(wide_b.mul_(cos).addcmul_(wide_a, sin, value=sign))


def _aligned(part: Tensor, along: int, dim: int, dims: int) -> Tensor:
    """A table [seq, dim/2] as it broadcasts against x."""
    shape = [1] * dims
    shape[along], shape[dim] = part.shape
    return (part if along < dim else part.mT).reshape(shape)


def _pairs(x: Tensor, dim: int, layout: str) -> tuple[Tensor, Tensor]:
    half = x.shape[dim] // 2
    if layout == "half":
        return x.narrow(dim, 0, half), x.narrow(dim, half, half)
    first, second = x.unflatten(dim, (half, 2)).unbind(dim + 1)
    return first, second


def _complex(x: Tensor, dim: int, cos: Tensor) -> bool:
    """Whether neighbours along dim can be read as complex numbers of the table's precision."""
    others = [step for at, step in enumerate(x.stride()) if at != dim]
    even = all(step % 2 == 0 for step in (*others, x.storage_offset()))
    return x.dtype == cos.dtype and x.stride(dim) == 1 and even


def _as_complex(x: Tensor, dim: int) -> Tensor:
    pairs = x.unflatten(dim, (x.shape[dim] // 2, 2)).movedim(dim + 1, -1)
    return torch.view_as_complex(pairs)


def _tiles(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors cut alike, along the first one's outer dims; those of length 1 are not cut."""
    lead = tensors[0]
    if lead.numel() <= _TILE or lead.device.type != "cpu":
        yield tensors
        return
    steps = [step if size > 1 else -1 for size, step in zip(lead.shape, lead.stride(), strict=True)]
    at = steps.index(max(steps))
    size = lead.shape[at]
    count = max(1, _TILE * size // lead.numel())
    for first in range(0, size, count):
        length = min(count, size - first)
        yield from _tiles([x if x.shape[at] == 1 else x.narrow(at, first, length) for x in tensors])
