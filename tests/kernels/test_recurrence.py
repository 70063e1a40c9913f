"""Recurrences in chunks are the recurrence position by position, and so are their gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fllmc.ir.ops import Recur, RecurGrad
from fllmc.kernels import recurrence
from fllmc.kernels import torch_ops as kernels
from tests.kernels.meaning import Views, hold, kind, mean, seeds

NAMES = ("along", "dim", "value", "heads", "groups")
SIZES = {"batch": 2, "dim": 3, "value": 4, "heads": 4, "groups": 2}
QK, V, ROW = "batch along groups dim", "batch along heads value", "batch along heads"


def operands(seed: int, length: int, delta: bool) -> tuple[list[Tensor], list[str], Tensor]:
    """q, k, v, logarithms of decays and maybe what is written; the dims of each; and d_y."""
    views = Views(seed)
    sizes = SIZES | {"along": length}

    def drawn(dims: str) -> Tensor:
        return views.normal([sizes[name] for name in dims.split()], torch.float64)

    dims = [QK, QK, V, ROW, *([ROW] if delta else [])]
    given = [drawn(each) for each in dims]
    given[1] /= given[1].norm(dim=-1, keepdim=True)
    given[3].copy_(-given[3].abs())
    for row in given[4:]:
        row.copy_(torch.sigmoid(row))
    return given, dims, drawn(V)


@pytest.mark.parametrize("delta", [False, True])
@settings(max_examples=12)
@given(seed=seeds, length=st.sampled_from([1, 7, 64, 150]))
def test_chunks_are_the_recurrence(delta: bool, seed: int, length: int) -> None:
    tensors, dims, dy = operands(seed, length, delta)
    sizes = SIZES | {"along": length}
    pairs = [(kind("f64", d), t) for d, t in zip(dims, tensors, strict=True)]
    (wanted,) = mean(Recur(*NAMES), sizes, pairs)
    out = Views(seed).empty(dy.shape, torch.float64)
    kernels.recur(*tensors, out=out)
    hold(out, wanted, terms=10.0)
    grads = mean(RecurGrad(*NAMES), sizes, [*pairs, (kind("f64", V), dy)])
    found = tuple(Views(seed).empty(t.shape, torch.float64) for t in tensors)
    q, k, v, g, *more = tensors
    kernels.recur_grad(q, k, v, g, more[0] if delta else None, dy, out=found)
    for each, right in zip(found, grads, strict=True):
        hold(each, right, terms=10.0)


@pytest.mark.parametrize("delta", [False, True])
def test_low_precision_is_that_of_the_operands(delta: bool) -> None:
    tensors, _, dy = operands(3, 100, delta)
    low = [t.bfloat16() for t in tensors]
    exact = [t.double() for t in low]
    wanted, out = torch.empty_like(dy), torch.empty(dy.shape, dtype=torch.bfloat16)
    kernels.recur(*exact, out=wanted)
    kernels.recur(*low, out=out)
    hold(out, wanted.numpy())
    assert recurrence.CHUNK == 64
