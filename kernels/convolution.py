"""Convolutions along one to three dims, and their gradients, into given views.

x: [batch, groups, channels, positions...]; w: [groups, own, channels, taps...]; y: [batch, groups,
own, windows...]. Window t of a dim begins at position t * stride - before; what lies outside of x
is zero. Depthwise ones along one dim with a stride of one are sums of shifted rows, which any
layout allows; all others go to PyTorch's convolution. Sums are in float32 at least.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

_BACKWARD: Any = torch.ops.aten.convolution_backward.default
_CONV: Any = torch.ops.aten.convolution.default


def conv(
    x: Tensor, w: Tensor, *, stride: Sequence[int], before: Sequence[int], out: Tensor
) -> None:
    """The windows of x, each times w."""
    room = _room(w.shape[3:], out.shape[3:], stride)
    rows = _padded(x, room, before)
    if _shifts(w, stride):
        wide, count = _wide(w), out.shape[3]
        total = torch.zeros(out.shape, dtype=wide.dtype, device=out.device)
        for tap in range(w.shape[3]):
            total.addcmul_(_wide(rows[..., tap : tap + count]), wide[:, :, 0, tap, None])
        out.copy_(total)
        return
    given = (rows.flatten(1, 2), w.flatten(0, 1), None)
    flat = _CONV(*given, *_options(stride), w.shape[0])
    out.copy_(flat.unflatten(1, out.shape[1:3]))


def conv_input(
    dy: Tensor, w: Tensor, *, stride: Sequence[int], before: Sequence[int], out: Tensor
) -> None:
    """The gradient of conv's x from that of its result."""
    room = _room(w.shape[3:], dy.shape[3:], stride)
    if _shifts(w, stride):
        wide, count = _wide(dy), dy.shape[3]
        rows = torch.zeros((*out.shape[:3], *room), dtype=wide.dtype, device=dy.device)
        for tap in range(w.shape[3]):
            rows[..., tap : tap + count].addcmul_(wide, _wide(w)[:, :, 0, tap, None])
    else:
        like = dy.new_empty(()).expand(out.shape[0], out.shape[1] * out.shape[2], *room)
        rows = _gradient(dy, like, w, stride, 0).unflatten(1, out.shape[1:3])
    ends = [(-b, b + n - r) for b, n, r in zip(before, out.shape[3:], room, strict=True)]
    out.copy_(functional.pad(rows, _pairs(ends)))


def conv_weight(
    x: Tensor, dy: Tensor, *, stride: Sequence[int], before: Sequence[int], out: Tensor
) -> None:
    """The gradient of conv's w from that of its result."""
    rows = _padded(x, _room(out.shape[3:], dy.shape[3:], stride), before)
    if _shifts(out, stride):
        for tap in range(out.shape[3]):
            met = _wide(rows[..., tap : tap + dy.shape[3]]) * _wide(dy)
            out[:, :, 0, tap].copy_(met.sum((0, 3)))
        return
    like = dy.new_empty(()).expand(out.shape)
    found = _gradient(dy, rows.flatten(1, 2), like, stride, 1)
    out.copy_(found.unflatten(0, out.shape[:2]))


def _gradient(dy: Tensor, x: Tensor, w: Tensor, stride: Sequence[int], which: int) -> Tensor:
    """PyTorch's gradient of the padded x (0) or of w (1); of that only the shape is used."""
    mask = [which == 0, which == 1, False]
    given = (dy.flatten(1, 2), x, w.flatten(0, 1), None)
    return _BACKWARD(*given, *_options(stride), w.shape[0], mask)[which]


def _options(stride: Sequence[int]) -> tuple[object, ...]:
    """Stride, padding, dilation, transposed and output padding."""
    none, one = [0] * len(stride), [1] * len(stride)
    return list(stride), none, one, False, none


def _room(taps: Sequence[int], windows: Sequence[int], stride: Sequence[int]) -> list[int]:
    """The positions from the first window's first to the last one's last."""
    return [(t - 1) * s + n for n, t, s in zip(taps, windows, stride, strict=True)]


def _padded(x: Tensor, room: Sequence[int], before: Sequence[int]) -> Tensor:
    """x as the windows meet it: zeros around it, less what no window meets."""
    ends = [(b, r - b - n) for b, r, n in zip(before, room, x.shape[3:], strict=True)]
    return functional.pad(x, _pairs(ends))


def _pairs(ends: Sequence[tuple[int, int]]) -> list[int]:
    """What to add before and behind each dim, the last dim first."""
    return [n for pair in reversed(ends) for n in pair]


def _shifts(w: Tensor, stride: Sequence[int]) -> bool:
    """Whether each channel has its own taps along one dim, and windows follow each other."""
    return tuple(w.shape[1:3]) == (1, 1) and tuple(stride) == (1,)


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
