"""What kernels are held to: the evaluator's rules in float64, on drawn views of any strides."""

from collections.abc import Sequence

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

from fllmc.ir.evaluate_local import LOCAL
from fllmc.ir.evaluate_parts import Array, Here
from fllmc.ir.ops.base import Attrs, Env
from fllmc.ir.types import Axis, Dim, Mesh, Sizes, Type

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
seeds = st.integers(0, 2**31)
dtypes = st.sampled_from(DTYPES)


def kind(dtype: str, dims: str, index: str = "") -> Type:
    """A type by its dims, written as `batch vocab@tensor`."""
    parts = [name.split("@") for name in dims.split()]
    return Type(dtype, tuple(Dim(p[0], tuple(p[1:])) for p in parts), index=index)


def mean(
    attrs: Attrs,
    sizes: dict[str, int],
    operands: Sequence[tuple[Type, Tensor | float]],
    rank: tuple[int, int] = (0, 1),
) -> tuple[Array, ...]:
    """The evaluator's results on one rank of a mesh of one axis `tensor`; rank is (which, of)."""
    mesh = Mesh((Axis("tensor", rank[1]),))
    kinds, env = tuple(k for k, _ in operands), Env(Sizes(sizes, mesh), {})
    here = Here(kinds, attrs.infer(kinds, env), env.sizes, {"tensor": rank[0]})
    arrays = [exact(x) if isinstance(x, Tensor) else np.asarray(x) for _, x in operands]
    found = LOCAL[type(attrs)](attrs, here, *arrays)
    return found if isinstance(found, tuple) else (found,)


def exact(x: Tensor) -> Array:
    """The values in float64, or the indices."""
    return (x.double() if x.is_floating_point() else x).numpy()


class Views:
    """Draws tensors whose dims lie in a drawn memory order, some with gaps between rows."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)
        self.torch = torch.Generator().manual_seed(seed)

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A view filled with a value that no result has."""
        order = self.random.permutation(len(shape))
        gaps = self.random.integers(0, 3, len(shape)) * (self.random.random() < 0.5)
        stored = torch.full([shape[i] + int(gaps[i]) for i in order], 777.0).to(dtype)
        whole = stored.permute([int(i) for i in np.argsort(order)])
        return whole[tuple(slice(int(g), int(g) + n) for g, n in zip(gaps, shape, strict=True))]

    def normal(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """A view of standard normal values."""
        values = torch.randn(tuple(shape), generator=self.torch, dtype=torch.float64)
        return self.empty(shape, dtype).copy_(values)

    def index(self, shape: Sequence[int], below: int) -> Tensor:
        """Contiguous indices."""
        return torch.randint(0, below, tuple(shape), generator=self.torch)


def hold(found: Tensor, wanted: Array, reference: Tensor | None = None, terms: float = 1.0) -> None:
    """The error is at most twice the reference's; rounding the largest value once is free.

    Errors are root mean squares, as the largest of a few is luck; in float64 it is the largest, and
    1e-12 of the largest value. Values below `terms` count as that: the size of the terms that a
    result is a difference of.
    """
    assert tuple(found.shape) == wanted.shape
    largest = float(np.abs(wanted).max(initial=terms))
    error = exact(found) - wanted
    assert np.isfinite(error).all()
    if found.dtype == torch.float64:
        assert np.abs(error).max(initial=0.0) <= 1e-12 * largest
        return
    allowed = torch.finfo(found.dtype).eps * largest
    if reference is not None:
        allowed = max(allowed, 2.0 * rms(exact(reference.detach()) - wanted))
    assert rms(error) <= allowed


def rms(error: Array) -> float:
    """The root mean square."""
    return float(np.sqrt(np.mean(error**2)))
