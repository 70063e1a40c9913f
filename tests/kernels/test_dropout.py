"""Random numbers are the evaluator's, bit for bit, whole and on each rank."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.ops import Random
from fllmc.ir.types import Axis, Dim, Mesh, Sizes
from fllmc.kernels import dropout, torch_ops
from tests.kernels.meaning import Views, exact, kind, mean, seeds

SIZES = {"batch": 3, "seq": 4, "heads": 6, "dim": 2}


@given(
    st.integers(0, 2**53 - 1), st.none() | st.integers(0, 2**16 - 1), st.integers(0, 2**20),
    st.permutations(["seq", "heads", "dim"]), st.integers(0, 3),
    st.sampled_from([(0, 1), (0, 2), (1, 2)]), st.sampled_from([1 << 16, 8, 1]), seeds,
)  # fmt: skip
def test_random(
    seed: int,
    layer: int | None,
    place: int,
    names: list[str],
    count: int,
    rank: tuple[int, int],
    tile: int,
    drawn: int,
) -> None:
    names = names[:count]
    local = [SIZES[n] // rank[1] if n == "heads" else SIZES[n] for n in names]
    starts = tuple(rank[0] * SIZES[n] // rank[1] if n == "heads" else 0 for n in names)
    views = Views(drawn)
    samples = views.index((3,), 2**48)
    out = views.empty([3, *local], torch.float32)
    level = None if layer is None else torch.tensor(layer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dropout, "_CPU_TILE", tile)
        torch_ops.random(
            seed, samples, level, place, starts, tuple(SIZES[n] for n in names), out=out
        )
    dims = (Dim("batch"), *(Dim(n, ("tensor",) if n == "heads" else ()) for n in names))
    given_layer = [] if level is None else [(kind("i64", ""), level)]
    operands = [(kind("f64", ""), float(seed)), (kind("i64", "batch"), samples), *given_layer]
    (wanted,) = mean(Random(place, dims), SIZES, operands, rank)
    assert (exact(out) == wanted).all()


def test_a_seed_may_come_as_a_float() -> None:
    outs = [torch.empty(2, 1000) for _ in range(2)]
    for seed, out in zip((2**40 + 3, float(2**40 + 3)), outs, strict=True):
        torch_ops.random(seed, torch.arange(2), None, 1, (0,), (1000,), out)
    assert torch.equal(*outs)
    assert 0.47 < float(outs[0].mean()) < 0.53


@pytest.mark.parametrize("which", [0, 1])
def test_of_positions_in_several_stretches(which: int) -> None:
    views = Views(which)
    dims = (Dim("batch"), Dim("heads"), Dim("seq", ("tensor~",)), Dim("dim"))
    sizes, samples = Sizes(SIZES, Mesh((Axis("tensor", 2),))), views.index((3,), 2**48)
    held = [sizes.stretches(dim, {"tensor": which}) for dim in dims[1:]]
    out = views.empty([3, 6, 2, 2], torch.float64)
    torch_ops.random_parts(7, samples, None, 5, held, (6, 4, 2), out=out)
    operands = [(kind("f64", ""), 7.0), (kind("i64", "batch"), samples)]
    (wanted,) = mean(Random(5, dims), SIZES, operands, (which, 2))
    assert (exact(out) == wanted).all()
