"""Random tensors that depend on their name and place only: on no rank, mesh, device or call order.

The numbers are those of `fllmc.ir.philox`, bit for bit, computed with torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Literal

import torch
from torch import Tensor

from fllmc.ir import philox
from fllmc.ir.diagnostics import InternalError

InitKind = Literal["normal", "fan_in", "zeros", "ones"]
Slices = Sequence[slice]

_CPU_BLOCKS = 1 << 15  # a chunk's float64 temporaries stay within a processor's cache
_DEVICE_BLOCKS = 1 << 22  # enough work for a launch, under 1 GiB of temporaries


class TorchLibrary:
    """What `fllmc.ir.philox` asks of an array library, in torch."""

    def double(self, x: Tensor) -> Tensor:
        """`x` as float64."""
        return x.double()

    def sqrt(self, x: Tensor) -> Tensor:
        """The square root, within a unit in the last place."""
        return torch.sqrt(x)

    def frexp(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mantissa in [1/2, 1) and exponent."""
        mantissa, exponent = torch.frexp(x)
        return mantissa, exponent


TORCH = TorchLibrary()


def bits(key: int, blocks: Tensor, stream: int = 0) -> Tensor:
    """The words of each counter block (int64), as int64 `[..., 4]` of values below 2**32."""
    return torch.stack(philox.words(key, blocks, stream), dim=-1)


def uniform32(key: int, blocks: Tensor, stream: int = 0) -> Tensor:
    """Each counter block's four float32 values in [0, 1), as `[..., 4]`."""
    return philox.unit24(bits(key, blocks, stream), TORCH).float()


def uniform64(key: int, blocks: Tensor, stream: int = 0) -> Tensor:
    """Each counter block's two float64 values in [0, 1), as `[..., 2]`."""
    w0, w1, w2, w3 = philox.words(key, blocks, stream)
    halves = [philox.unit53(w0, w1, TORCH), philox.unit53(w2, w3, TORCH)]
    return torch.stack(halves, dim=-1)


def normal(key: int, blocks: Tensor, stream: int = 0) -> Tensor:
    """Each counter block's four standard normal deviates, as float64 `[..., 4]`."""
    lanes = philox.normal_lanes(philox.words(key, blocks, stream), TORCH)
    return torch.stack(lanes, dim=-1)


def fill_normal_(out: Tensor, key: int, shape: Sequence[int], offsets: Sequence[int]) -> None:
    """Fill the shard `out`, which begins at `offsets` of a tensor of `shape`, with deviates.

    Element `e` of the whole tensor, in row-major order, is stream element `e`. Temporaries are
    bounded by a constant; `out` may be a strided view.
    """
    if out.numel() == 0:
        return
    limit = _CPU_BLOCKS if out.device.type == "cpu" else _DEVICE_BLOCKS
    whole = _whole_from(tuple(out.shape), tuple(shape))
    rows = _row_starts(tuple(out.shape[:whole]), tuple(shape), tuple(offsets), out.device)
    length = prod(out.shape[whole:])
    # Under a strided view this is a copy, written back at the end.
    flat = out.view(-1) if out.is_contiguous() else torch.empty_like(out).reshape(-1)
    target = flat.view(-1, length)
    for row, column, height, width in _tiles(target.shape[0], length, 4 * limit):
        starts = rows[row : row + height] + column
        target[row : row + height, column : column + width] = _run(key, starts, width)
    if not out.is_contiguous():
        out.copy_(flat.view(out.shape))


def _run(key: int, starts: Tensor, width: int) -> Tensor:
    """Stream elements `starts[i] .. starts[i] + width`, as float64 `[len(starts), width]`."""
    count = (width + 6) // 4  # the blocks that a run touches, wherever in a block it starts
    blocks = (starts >> 2)[:, None] + torch.arange(count, device=starts.device)
    lanes = normal(key, blocks).view(len(starts), -1)
    columns = (starts & 3)[:, None] + torch.arange(width, device=starts.device)
    return lanes.gather(1, columns)


def _whole_from(local: tuple[int, ...], shape: tuple[int, ...]) -> int:
    """The number of leading dims to walk: behind them the shard's elements are consecutive."""
    k = len(shape)
    while k > 0 and local[k - 1] == shape[k - 1]:
        k -= 1
    return max(k - 1, 0)


def _row_starts(
    leading: tuple[int, ...], shape: tuple[int, ...], offsets: tuple[int, ...], device: torch.device
) -> Tensor:
    """The global element number at which each consecutive run of the shard starts."""
    base = sum(o * prod(shape[i + 1 :]) for i, o in enumerate(offsets))
    starts = torch.full((1,), base, dtype=torch.int64, device=device)
    for i, size in enumerate(leading):
        steps = torch.arange(size, device=device) * prod(shape[i + 1 :])
        starts = (starts[:, None] + steps).reshape(-1)
    return starts


def _tiles(rows: int, columns: int, limit: int) -> Iterator[tuple[int, int, int, int]]:
    """Row, column, height and width of tiles of about `limit` elements that cover the array."""
    width = min(columns, limit)
    height = max(1, limit // width)
    for row in range(0, rows, height):
        for column in range(0, columns, width):
            yield row, column, min(height, rows - row), min(width, columns - column)


def fill_(
    out: Tensor,
    kind: InitKind,
    seed: int,
    path: str,
    shape: Sequence[int],
    offsets: Sequence[int],
    *,
    std: float = 1.0,
    fan_in: int = 1,
) -> None:
    """Fill the shard `out` of parameter `path` with its initial value.

    `normal` has standard deviation `std`, `fan_in` has `1 / sqrt(fan_in)`. The value of an element
    is rounded once, from float64 to the dtype of `out`.
    """
    if kind == "zeros":
        out.zero_()
    elif kind == "ones":
        out.fill_(1.0)
    else:
        scale = std if kind == "normal" else fan_in**-0.5
        _fill_scaled_(out, scale, philox.stream_key("init", seed, path), shape, offsets)


def _fill_scaled_(
    out: Tensor, scale: float, key: int, shape: Sequence[int], offsets: Sequence[int]
) -> None:
    if out.dim() == 0:
        out.fill_(scale * philox.normal(key, 0, 1).item())
        return
    # Piece by piece along the first dim, so that the float64 copy stays small.
    inner = max(1, prod(out.shape[1:]))
    step = max(1, (1 << 22) // inner)
    for first in range(0, out.shape[0], step):
        part = out[first : first + step]
        exact = torch.empty(part.shape, dtype=torch.float64, device=out.device)
        fill_normal_(exact, key, shape, (offsets[0] + first, *offsets[1:]))
        part.copy_(exact.mul_(scale))


def fill_stacked_(
    out: Tensor,
    kind: InitKind,
    seed: int,
    paths: Sequence[str],
    shape: Sequence[int],
    offsets: Sequence[int],
    *,
    std: float = 1.0,
    fan_in: int = 1,
) -> None:
    """Fill `[layers, ...]`: layer `i` is exactly what `fill_` gives the parameter `paths[i]`.

    `shape` and `offsets` are those of one layer.
    """
    if len(paths) != out.shape[0]:
        raise InternalError(f"{len(paths)} paths for {out.shape[0]} layers")
    for layer, path in zip(out.unbind(0), paths, strict=True):
        fill_(layer, kind, seed, path, shape, offsets, std=std, fan_in=fan_in)


def init_tensor(
    kind: InitKind,
    seed: int,
    path: str,
    shape: Sequence[int],
    slices: Slices | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    *,
    std: float = 1.0,
    fan_in: int = 1,
) -> Tensor:
    """The shard `slices` (default: all) of parameter `path`, freshly allocated."""
    ranges = [
        s.indices(n) for s, n in zip(slices or [slice(None)] * len(shape), shape, strict=True)
    ]
    sizes = [max(0, stop - start) for start, stop, _ in ranges]
    out = torch.empty(sizes, dtype=dtype, device=device)
    offsets = [start for start, _, _ in ranges]
    fill_(out, kind, seed, path, shape, offsets, std=std, fan_in=fan_in)
    return out
