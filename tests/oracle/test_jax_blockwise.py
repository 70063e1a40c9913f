"""Blockwise codes by JAX, whose rule looks for the nearest of all levels."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fllmc.ir.evaluate import evaluate
from tests.ir.test_blockwise import BITS, ORDERS, drawn, there_and_back

jax = pytest.importorskip("jax")

from fllmc.codegen.jax_target import jax_function  # noqa: E402


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """64-bit values, for these tests only."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("bits", BITS)
def test_jax_gives_the_same_codes(bits: int, names: tuple[str, ...]) -> None:
    program, x = there_and_back(bits, names), {"x": drawn(names)}
    found, wanted = jax_function(program, "main")(x), evaluate(program, "main", x)
    np.testing.assert_array_equal(found["y0"], wanted["y0"])
    for name in ("y1", "y2"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-14)
