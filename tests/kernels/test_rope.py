"""Rotary positions equal their meaning, in place of any dims, and turn back."""

from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.ops import Rope
from fllmc.ir.rotary import turning_speeds
from fllmc.kernels import rope as family
from fllmc.kernels import torch_ops
from tests.kernels.meaning import Views, dtypes, hold, kind, mean, seeds

NAMES = ("batch", "heads", "seq", "dim")
LAYOUTS: tuple[Literal["half", "interleaved"], ...] = ("half", "interleaved")


@given(
    st.permutations(NAMES), st.sampled_from(LAYOUTS), st.booleans(), dtypes,
    st.sampled_from([1 << 17, 24, 1]), seeds,
)  # fmt: skip
def test_rope(
    names: list[str],
    layout: Literal["half", "interleaved"],
    inverse: bool,
    dtype: torch.dtype,
    tile: int,
    seed: int,
) -> None:
    views = Views(seed)
    sizes = {name: int(views.random.integers(1, 7)) for name in NAMES}
    sizes["dim"] *= 2
    shape = [sizes[name] for name in names]
    x, out = views.normal(shape, dtype), views.empty(shape, dtype)
    along, dim = names.index("seq"), names.index("dim")
    attrs = Rope("seq", "dim", 100.0, layout, inverse)
    table = torch_ops.rope_table(sizes["seq"], attrs.speeds(sizes["dim"]), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family, "_TILE", tile)
        torch_ops.rope(x, table, along, dim, layout, inverse, out=out)
    (wanted,) = mean(attrs, sizes, [(kind("f64", " ".join(names)), x)])
    hold(out, wanted)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_contiguous(layout: Literal["half", "interleaved"], dtype: torch.dtype) -> None:
    """Several tiles, and neighbours read as complex numbers."""
    sizes = {"batch": 3, "seq": 300, "heads": 4, "dim": 64}
    x = torch.randn(*sizes.values(), generator=torch.Generator().manual_seed(0)).to(dtype)
    out = torch.empty_like(x)
    torch_ops.rope(
        x, torch_ops.rope_table(300, turning_speeds(64, 1e4), dtype), 1, 3, layout, out=out
    )
    attrs = Rope("seq", "dim", 1e4, layout)
    (wanted,) = mean(attrs, sizes, [(kind("f64", "batch seq heads dim"), x)])
    hold(out, wanted)


def test_table_of_low_precision_is_kept_in_float32() -> None:
    speeds = turning_speeds(8, 1e4)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        assert {part.dtype for part in torch_ops.rope_table(4, speeds, dtype)} == {torch.float32}
    cos, sin = torch_ops.rope_table(5, speeds, torch.float64)
    assert cos.dtype == torch.float64 and cos.shape == sin.shape == (5, 4)
