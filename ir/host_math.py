"""Arithmetic on Python floats as IEEE 754 has it: infinities and NaNs where Python would raise.

The compiler folds constants with it and generated code computes host scalars with it, so a rate
that divides by zero at one step is a number there as on a device, and not a traceback.
"""

from __future__ import annotations

import math


def div(a: float, b: float) -> float:
    """a / b."""
    if b != 0.0:
        return a / b
    if a == 0.0 or math.isnan(a):
        return math.nan
    return math.copysign(math.inf, a) * math.copysign(1.0, b)


def power(a: float, b: float) -> float:
    """a to the power b; NaN for a negative a and a b that is not whole."""
    try:
        return math.pow(a, b)
    except OverflowError:
        return -math.inf if a < 0.0 and b % 2.0 == 1.0 else math.inf
    except ValueError:
        if a != 0.0:
            return math.nan
        return math.copysign(math.inf, a) if b % 2.0 == 1.0 else math.inf


def exp(a: float) -> float:
    """e to the power a."""
    try:
        return math.exp(a)
    except OverflowError:
        return math.inf


def log(a: float) -> float:
    """The natural logarithm."""
    if a == 0.0:
        return -math.inf
    return math.nan if a < 0.0 else math.log(a)


def sqrt(a: float) -> float:
    """The square root."""
    return math.nan if a < 0.0 else math.sqrt(a)


def rsqrt(a: float) -> float:
    """1 / sqrt(a)."""
    return div(1.0, sqrt(a))


def sigmoid(a: float) -> float:
    """1 / (1 + exp(-a))."""
    return div(1.0, 1.0 + exp(-a))


def sin(a: float) -> float:
    """The sine; NaN for an infinity."""
    return math.nan if math.isinf(a) else math.sin(a)


def cos(a: float) -> float:
    """The cosine; NaN for an infinity."""
    return math.nan if math.isinf(a) else math.cos(a)


def maximum(a: float, b: float) -> float:
    """The larger; NaN when either is."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def minimum(a: float, b: float) -> float:
    """The smaller; NaN when either is."""
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)


def total(*terms: float) -> float:
    """The sum, in order."""
    return sum(terms[1:], terms[0])


def negative(a: float) -> float:
    """-a."""
    return -a


def same(a: float) -> float:
    """The number itself."""
    return a


def where(a: float, b: float, c: float) -> float:
    """b where a holds, else c."""
    return b if a else c


def silu(x: float) -> float:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def silu_grad(d: float, x: float) -> float:
    """d times the derivative of silu."""
    s = sigmoid(x)
    return d * s * (1.0 + x * (1.0 - s))


def mul_add(base: float, a: float, b: float) -> float:
    """base + a * b."""
    return base + a * b


def mul_sub(base: float, a: float, b: float) -> float:
    """base - a * b."""
    return base - a * b
