"""The named composites, each defined in primitives as a function of its own.

Inputs in bf16 or f16 are computed with in f32; the result has the inputs' dtype.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from fllmc.ir.build import Builder
from fllmc.ir.ops import Erf, Log, Maximum, ReduceMax, Silu, Stop, Tanh
from fllmc.ir.program import Function
from fllmc.ir.types import HOST_SCALAR, Sizes, Type

Dims = tuple[str, ...]
Options = Mapping[str, float | str]
Meaning = Callable[[Builder, tuple[int, ...], Dims, Options], int]


def composite(
    name: str, as_name: str, kinds: tuple[Type, ...], over: Dims, options: Options, sizes: Sizes
) -> Function:
    """The composite `name` on inputs of these types, as a function called `as_name`."""
    builder = Builder(as_name, sizes)
    inputs = [builder.input(given, kind) for given, kind in zip(INPUTS[name], kinds, strict=True)]
    narrow = next((kind.dtype for kind in kinds if kind != HOST_SCALAR), "f64")
    wide = "f32" if narrow in ("bf16", "f16") else narrow
    values = tuple(builder.cast(value, wide) for value in inputs)
    result = MEANINGS[name](builder, values, over, options)
    return builder.finish((builder.cast(result, narrow),), ("out",))


def _relu(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    return b.one(Maximum(), values[0], b.constant(0.0))


def _silu(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    return b.one(Silu(), values[0])


def _swiglu(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    return b.mul(_silu(b, values[:1], over, options), values[1])


def _gelu(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    """x Phi(x) (Hendrycks and Gimpel 2016), exactly by erf or as they approximate it by tanh."""
    (x,) = values
    if options["approximate"] == "tanh":
        cubic = b.mul(b.constant(0.044715), b.mul(x, b.mul(x, x)))
        inner = b.mul(b.constant(math.sqrt(2 / math.pi)), b.add(x, cubic))
        curve = b.one(Tanh(), inner)
    else:
        curve = b.one(Erf(), b.mul(x, b.constant(math.sqrt(0.5))))
    return b.mul(b.mul(b.constant(0.5), x), b.add(curve, b.constant(1.0)))


def _shifted(b: Builder, x: int, over: Dims) -> tuple[int, int]:
    """(x less its maximum, the maximum). The maximum cancels, so no gradient flows through it."""
    top = b.one(Stop(), b.one(ReduceMax(over), x))
    return b.sub(x, top), top


def _softmax(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    exponents = b.exp(_shifted(b, values[0], over)[0])
    return b.div(exponents, b.sum(exponents, over))


def _log_softmax(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    shifted, _ = _shifted(b, values[0], over)
    return b.sub(shifted, b.one(Log(), b.sum(b.exp(shifted), over)))


def _logsumexp(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    shifted, top = _shifted(b, values[0], over)
    return b.add(b.one(Log(), b.sum(b.exp(shifted), over)), top)


def _mean(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    return b.mul(b.sum(values[0], over), b.constant(1 / _count(b, over)))


def _rms_norm(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    """Zhang and Sennrich 2019, without the scale."""
    (x,) = values
    square = _mean(b, (b.mul(x, x),), over, options)
    return b.mul(x, b.rsqrt(b.add(square, b.constant(float(options["eps"])))))


def _layer_norm(b: Builder, values: tuple[int, ...], over: Dims, options: Options) -> int:
    """Ba, Kiros and Hinton 2016, without scale and bias: the variance divides by the count."""
    centred = b.sub(values[0], _mean(b, values, over, options))
    return _rms_norm(b, (centred,), over, options)


def _count(b: Builder, dims: Dims) -> int:
    return math.prod(b.sizes.size(name) for name in dims)


MEANINGS: Mapping[str, Meaning] = {
    "gelu": _gelu,
    "layer_norm": _layer_norm,
    "log_softmax": _log_softmax,
    "logsumexp": _logsumexp,
    "mean": _mean,
    "relu": _relu,
    "rms_norm": _rms_norm,
    "silu": _silu,
    "softmax": _softmax,
    "swiglu": _swiglu,
}
INPUTS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(MEANINGS, ("x",)),
    "swiglu": ("gate", "up"),
}
