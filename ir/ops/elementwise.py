"""Elementwise ops: operands broadcast by dim name, the result has the union of their dims."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.ops.base import (
    Attrs,
    Env,
    TypeRuleError,
    distinct,
    joint_dtype,
    linear_in_one,
    require,
    union,
)
from fllmc.ir.types import FLOATS, Dim, Type


class Elementwise(Attrs, frozen=True):
    """An op on each element alone. `linear` lists operands that it is linear in, one at a time."""

    linear: ClassVar[tuple[int, ...]] = ()

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        partial = linear_in_one(operands, self.linear)
        return (Type(joint_dtype(operands), union(operands), partial),)


class Sum(Elementwise, frozen=True):
    """Base of the ops that add operands: partial values may be added when all are open alike."""

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(len(operands) > 0, "nothing to add")
        first = operands[0]
        for kind in operands:
            require(kind.partial == first.partial, f"added values are open as {first} and {kind}")
            require(not kind.partial or kind.combine == "sum", "a partial maximum can't be added")
        return (Type(joint_dtype(operands), union(operands), first.partial),)


class Add(Sum, frozen=True, tag="add"):
    """a + b."""

    arity = 2


class Sub(Sum, frozen=True, tag="sub"):
    """a - b."""

    arity = 2


class AddN(Sum, frozen=True, tag="addn"):
    """The sum of all operands, in order."""

    arity = -1


class Mul(Elementwise, frozen=True, tag="mul"):
    """a * b."""

    arity = 2
    linear = (0, 1)


class Div(Elementwise, frozen=True, tag="div"):
    """a / b."""

    arity = 2
    linear = (0,)


class Pow(Elementwise, frozen=True, tag="pow"):
    """a to the power b."""

    arity = 2


class Maximum(Elementwise, frozen=True, tag="maximum"):
    """The larger of a and b."""

    arity = 2


class Minimum(Elementwise, frozen=True, tag="minimum"):
    """The smaller of a and b."""

    arity = 2


class Less(Elementwise, frozen=True, tag="less"):
    """a < b, as bool."""

    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = super().infer(operands, env)
        return (msgspec.structs.replace(kind, dtype="bool"),)


class Where(Elementwise, frozen=True, tag="where"):
    """b where a holds, else c."""

    arity = 3

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(operands[0].dtype == "bool", "the condition must be bool")
        require(not any(kind.partial for kind in operands), "where needs resolved operands")
        return (Type(joint_dtype(operands[1:]), union(operands)),)


class Neg(Elementwise, frozen=True, tag="neg"):
    """-a."""

    linear = (0,)


class Exp(Elementwise, frozen=True, tag="exp"):
    """e to the power a."""


class Log(Elementwise, frozen=True, tag="log"):
    """The natural logarithm of a."""


class Sqrt(Elementwise, frozen=True, tag="sqrt"):
    """The square root of a."""


class Rsqrt(Elementwise, frozen=True, tag="rsqrt"):
    """1 / sqrt(a)."""


class Sigmoid(Elementwise, frozen=True, tag="sigmoid"):
    """1 / (1 + exp(-a))."""


class Silu(Elementwise, frozen=True, tag="silu"):
    """a * sigmoid(a) (Elfwing et al. 2017)."""


class SiluGrad(Elementwise, frozen=True, tag="silu_grad"):
    """The gradient of silu: (d, a) -> d * s * (1 + a * (1 - s)) with s = sigmoid(a)."""

    arity = 2
    linear = (0,)


class MulAdd(Elementwise, frozen=True, tag="mul_add"):
    """base + a * b: (base, a, b). The base and the product are open alike, or neither is."""

    arity = 3

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        base, a, b = operands
        partial = linear_in_one((a, b), (0, 1))
        require(base.partial == partial, f"{base} and the product of {a} and {b} are open apart")
        require(not partial or base.combine == "sum", "a partial maximum can't be added to")
        return (Type(joint_dtype(operands), union(operands), partial),)


class MulSub(MulAdd, frozen=True, tag="mul_sub"):
    """base - a * b: (base, a, b)."""


class Tanh(Elementwise, frozen=True, tag="tanh"):
    """The hyperbolic tangent of a."""


class Erf(Elementwise, frozen=True, tag="erf"):
    """The error function of a."""


class Sin(Elementwise, frozen=True, tag="sin"):
    """The sine of a."""


class Cos(Elementwise, frozen=True, tag="cos"):
    """The cosine of a."""


class Stop(Elementwise, frozen=True, tag="stop"):
    """a itself, indices too; no gradient flows through."""

    linear = (0,)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = super().infer(operands, env)
        return (msgspec.structs.replace(kind, index=operands[0].index),)


class Cast(Elementwise, frozen=True, tag="cast"):
    """a in another dtype."""

    dtype: str
    linear = (0,)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(not operands[0].index, "indices can't be cast")
        require(self.dtype in FLOATS, f"no float dtype {self.dtype}")
        return (msgspec.structs.replace(operands[0], dtype=self.dtype),)


class Rename(Attrs, frozen=True, tag="rename"):
    """The same values under other dim names: pairs (old, new)."""

    pairs: tuple[tuple[str, str], ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        new = dict(self.pairs)
        for old in new:
            require(old in kind.names, f"{kind} has no dim {old}")
            require(
                env.sizes.size(old) == env.sizes.size(new[old]),
                f"{old} and {new[old]} differ in size",
            )
        dims = tuple(Dim(new.get(dim.name, dim.name), dim.axes) for dim in kind.dims)
        return (msgspec.structs.replace(kind, dims=distinct(dims)),)


class Transpose(Attrs, frozen=True, tag="transpose"):
    """The same value with its dims laid out in another order."""

    order: tuple[str, ...]

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(sorted(self.order) == sorted(kind.names), f"{self.order} is no order of {kind}")
        return (kind.placed(kind.dim(name) for name in self.order),)


class Fill(Attrs, frozen=True, tag="fill"):
    """A constant: each element is `value`. Open axes make it a partial value (only zero may be)."""

    value: float
    dtype: str = "f64"
    dims: tuple[Dim, ...] = ()
    partial: tuple[str, ...] = ()
    arity = 0

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(not self.partial or self.value == 0.0, "only zeros can be an open sum")
        return (Type(self.dtype, distinct(self.dims), self.partial),)


class Iota(Attrs, frozen=True, tag="iota"):
    """The global positions along a dim, from `first`; where it is a part of dim `of`, as such.

    With `each`, position i stands for i // each, as where that many heads share one of `of`.
    """

    dim: Dim
    first: int = 0
    of: str = ""
    each: int = 1
    arity = 0

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        return (Type("i64", (self.dim,), index=self.of or self.dim.name),)


class Number(Attrs, frozen=True, tag="number"):
    """Indices as numbers: positions, to compute with. No gradient flows through them."""

    dtype: str

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(bool(kind.index), f"{kind} are no indices")
        require(self.dtype in FLOATS, f"no float dtype {self.dtype}")
        return (Type(self.dtype, kind.dims),)


class Random(Attrs, frozen=True, tag="random"):
    """Uniform numbers in [0, 1) by Philox4x32-10 counters.

    Operands: the seed (host scalar), the global sample of each position of the leading dim, and
    optionally a layer index. An element's number depends on these, `place` and its global position
    alone, so it is the same on every mesh and when recomputed.
    """

    place: int
    dims: tuple[Dim, ...]
    dtype: str = "f32"
    arity = -1

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        if len(operands) not in (2, 3):
            raise TypeRuleError("random takes a seed, samples and maybe a layer index")
        samples = operands[1]
        require(samples.dims == self.dims[:1], f"samples {samples} must have the leading dim alone")
        return (Type(self.dtype, distinct(self.dims)),)
