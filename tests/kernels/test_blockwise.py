"""The blockwise kernels against codes written out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fllmc.kernels import blockwise
from tests.ir.blockwise import coded, packed

BLOCKS, BLOCK, INNER = 6, 8, 3


def by_kernel(x: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes, scales and the value that they stand for, in the dtype of x."""
    shape = (BLOCKS, BLOCK * bits // 8, INNER)
    codes = torch.empty(shape, dtype=torch.int8 if bits == 8 else torch.uint8)
    scales, value = torch.empty(BLOCKS, INNER), torch.empty_like(x)
    blockwise.quantize(x, bits, out=(codes, scales))
    blockwise.dequantize(codes, scales, bits, out=value)
    return codes, scales, value


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_codes_scales_and_values(dtype: torch.dtype, bits: int) -> None:
    x = torch.randn(BLOCKS, BLOCK, INNER, generator=torch.Generator().manual_seed(1)).to(dtype)
    x[2, :, 1] = 0.0
    codes, scales, value = by_kernel(x, bits)
    wanted = coded(x.double().numpy(), 1, BLOCK, bits)
    held = packed(wanted.codes, 1) if bits == 4 else wanted.codes
    np.testing.assert_array_equal(codes.numpy(), held)
    np.testing.assert_allclose(scales.numpy(), wanted.scales[:, 0], rtol=1e-7)
    exact = torch.from_numpy(wanted.value).to(dtype).double()
    eps = max(torch.finfo(dtype).eps, 2e-7)
    np.testing.assert_allclose(value.double().numpy(), exact.numpy(), rtol=eps)


@pytest.mark.parametrize("bits", [4, 8])
def test_tiles_and_strides_do_not_matter(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(BLOCKS, INNER, BLOCK).movedim(1, 2)
    whole = by_kernel(x, bits)
    monkeypatch.setattr(blockwise, "_CPU_TILE", 4 * BLOCK * INNER)
    for one, other in zip(whole, by_kernel(x.contiguous(), bits), strict=True):
        assert torch.equal(one, other)
