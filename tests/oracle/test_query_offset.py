"""Attention with fewer queries than keys: what a chunk of the queries gives is a part of the whole.

The evaluator, JAX and the plan each say so.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Sizes, tensor
from tests.codegen.running import check, hand_made, planned

jax = pytest.importorskip("jax")

from fllmc.codegen.jax_target import jax_function  # noqa: E402

SEQ, CHUNK = 12, 4
DIMS = {"batch": 2, "seq": SEQ, "chunk": CHUNK, "heads": 4, "kv_heads": 2, "head_dim": 6}
HEADS = ("heads", "kv_heads", "head_dim", 0.4, "causal")
SHAPES = {"q": (2, SEQ, 4, 6), "k": (2, SEQ, 2, 6), "v": (2, SEQ, 2, 6), "d": (2, SEQ, 4, 6)}


@pytest.fixture(autouse=True)
def wide_jax() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def attention(queries: str, first: int) -> Program:
    """Attention and its gradient, of the queries from position `first` on."""
    b = Builder("main", Sizes(DIMS))
    mine = tensor("f64", "batch", queries, "heads", "head_dim")
    theirs = tensor("f64", "batch", "seq", "kv_heads", "head_dim")
    q, k, v, d = (b.input(name, mine if name in "qd" else theirs, "data") for name in SHAPES)
    given = (queries, *HEADS, "seq", first)
    out, lse = b.emit(ops.Attend(*given), q, k, v)
    grads = b.emit(ops.AttendGrad(*given), q, k, v, out, lse, d)
    return hand_made(b, [out, lse, *grads], ["out", "lse", "dq", "dk", "dv"])


def test_chunks_make_the_whole() -> None:
    rng = np.random.default_rng(0)
    given = {name: rng.standard_normal(shape) for name, shape in SHAPES.items()}
    whole = evaluate(attention("seq", 0), "main", given)
    sums = dict.fromkeys(("dk", "dv"), np.zeros(SHAPES["k"]))
    for first in range(0, SEQ, CHUNK):
        rows = slice(first, first + CHUNK)
        part = {n: x[:, rows] if n in "qd" else x for n, x in given.items()}
        program = attention("chunk", first)
        check(planned(program))
        found = evaluate(program, "main", part)
        by_jax = jax_function(program, "main")(part)
        for name, value in found.items():
            np.testing.assert_allclose(by_jax[name], value, rtol=0, atol=1e-12)
        for name in ("out", "lse", "dq"):
            np.testing.assert_allclose(found[name], whole[name][:, rows], rtol=0, atol=1e-12)
        sums = {name: total + found[name] for name, total in sums.items()}
    for name, total in sums.items():
        np.testing.assert_allclose(total, whole[name], rtol=0, atol=1e-12)
