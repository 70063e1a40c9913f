"""Ops that store a value in few bits, with a scale for each block of positions along one dim.

`dim` is cut into as many equal blocks as the dim `blocks` has positions. Codes of 8 bits have the
dims of the value, and `codes` is `dim`; of 4 bits positions 2i and 2i + 1 along `dim` share the
byte at position i along `codes`, the first in the upper half. Codes and scales are placed as the
value is, so each rank holds whole blocks. See `ir/codebooks.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.codebooks import CODE_DTYPES
from fllmc.ir.ops.base import Attrs, Env, in_one_stretch, require
from fllmc.ir.types import FLOATS, Dim, Type


class Blockwise(Attrs, frozen=True):
    """Base of both ways: which dims the value, its codes and its scales have for each other."""

    dim: str
    codes: str
    blocks: str
    bits: int

    def renamed(self, kind: Type, old: str, new: str, dtype: str) -> Type:
        """The type with one dim for another at the same place, in another dtype."""
        dims = (Dim(new, dim.axes) if dim.name == old else dim for dim in kind.dims)
        return Type(dtype, tuple(dims))

    def fit(self, env: Env) -> None:
        """Check that codes and blocks make up the dim."""
        require(self.bits in CODE_DTYPES, f"codes of {self.bits} bits")
        size, codes, blocks = (env.sizes.size(n) for n in (self.dim, self.codes, self.blocks))
        require(codes * 8 == size * self.bits, f"{self.codes}={codes} holds no {self.dim}={size}")
        require(self.bits < 8 or self.codes == self.dim, f"8 bits along {self.codes}")
        require(size % blocks == 0, f"{self.blocks}={blocks} does not divide {self.dim}={size}")
        require(size // blocks * self.bits % 8 == 0, f"two blocks of {self.blocks} share a byte")


class Quantize(Blockwise, frozen=True, tag="quantize"):
    """x -> (codes, scales in f32): each block by its largest magnitude, rounded to the nearest."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(kind.is_float and not kind.partial, f"{kind} is not quantised")
        require(self.dim in kind.names, f"{kind} has no dim {self.dim}")
        in_one_stretch(kind.dim(self.dim))
        self.fit(env)
        codes = self.renamed(kind, self.dim, self.codes, CODE_DTYPES[self.bits])
        return (codes, self.renamed(kind, self.dim, self.blocks, "f32"))


class Dequantize(Blockwise, frozen=True, tag="dequantize"):
    """(codes, scales) -> the level of each code times the scale of its block, in `dtype`."""

    dtype: str
    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        codes, scales = operands
        require(self.dtype in FLOATS, f"dequantised to {self.dtype}")
        require(not codes.partial and not scales.partial, "open sums are not dequantised")
        require(codes.dtype == CODE_DTYPES.get(self.bits, ""), f"{codes} holds no {self.bits} bits")
        require(scales.dtype == "f32", f"scales are {scales}")
        require(self.codes in codes.names, f"{codes} has no dim {self.codes}")
        in_one_stretch(codes.dim(self.codes))
        self.fit(env)
        found = self.renamed(codes, self.codes, self.dim, self.dtype)
        expected = self.renamed(found, self.dim, self.blocks, "f32")
        require(scales == expected, f"scales are {scales}, not {expected}")
        return (found,)
