"""The Triton kernels, run by Triton's interpreter, against the same in plain torch."""

from __future__ import annotations

import os

import pytest
import torch

os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined
pytest.importorskip("triton")

from fllmc.kernels import blockwise, blockwise_triton

SHAPES = [(6, 8, 3), (70, 64, 1), (2, 16, 700), (1, 64, 1)]


def drawn(shape: tuple[int, int, int], dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2)).to(dtype)
    x[0, :, 0] = 0.0
    return x


def made(shape: tuple[int, int, int], bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Empty codes and scales."""
    blocks, block, inner = shape
    kind = torch.int8 if bits == 8 else torch.uint8
    codes = torch.zeros((blocks, block * bits // 8, inner), dtype=kind)
    return codes, torch.zeros(blocks, inner)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_codes(shape: tuple[int, int, int], bits: int, dtype: torch.dtype) -> None:
    x, wanted, found = drawn(shape, dtype), made(shape, bits), made(shape, bits)
    blockwise.quantize(x, bits, out=wanted)
    blockwise_triton.quantize(x, bits, out=found)
    for one, other in zip(wanted, found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_from_codes(shape: tuple[int, int, int], bits: int, dtype: torch.dtype) -> None:
    parts = made(shape, bits)
    blockwise.quantize(drawn(shape, torch.float32), bits, out=parts)
    wanted, found = torch.empty(shape), torch.full(shape, torch.nan, dtype=dtype)
    blockwise.dequantize(*parts, bits, out=wanted)
    blockwise_triton.dequantize(*parts, bits, out=found)
    assert torch.equal(cut(wanted, dtype), found)


def cut(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What the interpreter makes of f32: it cuts bits off where a device rounds."""
    return (x.view(torch.int32) & ~0xFFFF).view(torch.float32).bfloat16() if dtype != x.dtype else x


@pytest.mark.parametrize("bits", [4, 8])
def test_every_code(bits: int) -> None:
    codes = torch.arange(256).to(torch.uint8).view(torch.int8 if bits == 8 else torch.uint8)
    codes = codes.view(1, 256, 1)
    wanted, found = (torch.empty(1, 256 * 8 // bits, 1) for _ in range(2))
    for kernel, out in ((blockwise, wanted), (blockwise_triton, found)):
        kernel.dequantize(codes, torch.full((1, 1), 3.0), bits, out=out)
    assert torch.equal(wanted, found)
