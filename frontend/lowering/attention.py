"""The attributes of `attend` and `rope`, from typed calls and sizes."""

from __future__ import annotations

import math

from msgspec import structs

from fllmc.frontend import ast
from fllmc.frontend.errors import BadSize
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed_attention import Attend, Rope, Scaling
from fllmc.ir import ops
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.types import Sizes


def number(expr: ast.Expr, sizes: Sizes, what: str) -> float:
    """The value of an expression over sizes, above zero; DiagnosticError if it has none."""
    value = evaluate(expr, lambda ref: sizes.size(ref.name), what)
    if value <= 0:
        reason = "a number above zero is wanted"
        raise DiagnosticError(BadSize(expr.span, f"{what} would be {value:.10g}", reason))
    return value


def whole(expr: ast.Expr, sizes: Sizes, what: str) -> int:
    """The value as a whole number above zero."""
    value = number(expr, sizes, what)
    if value != int(value):
        reason = "a whole number above zero is wanted"
        raise DiagnosticError(BadSize(expr.span, f"{what} would be {value:.10g}", reason))
    return int(value)


def part_start(first: ast.Expr, sizes: Sizes, of: str, to: str) -> int:
    """Where a part begins; DiagnosticError where it does not lie within the dim."""
    start = evaluate(first, lambda ref: sizes.size(ref.name), "`first`")
    if start != int(start) or not 0 <= start <= sizes.size(of) - sizes.size(to):
        what = f"`first` would be {start:.10g}"
        reason = f"`{to}` has {sizes.size(to)} of the {sizes.size(of)} positions of `{of}`"
        raise DiagnosticError(BadSize(first.span, what, reason))
    return int(start)


def attend_attrs(op: Attend, sizes: Sizes) -> ops.Attend:
    """Attention; the scale is 1/sqrt(size of dim) unless it is stated."""
    scale = 1 / math.sqrt(sizes.size(op.dim))
    if op.scale is not None:
        scale = float(number(op.scale, sizes, "`scale`"))
    return ops.Attend(
        op.along,
        op.heads,
        op.kv_heads,
        op.dim,
        scale,
        op.mask,
        op.keys,
        window=0 if op.window is None else whole(op.window, sizes, "`window`"),
        cap=0.0 if op.cap is None else float(number(op.cap, sizes, "`cap`")),
        value=op.value,
        sinks=op.sinks,
        bias=op.bias,
        origin=sizes.size(op.along) - 1 if op.bias else 0,
    )


def rope_attrs(op: Rope, sizes: Sizes) -> ops.Rope:
    """Rotary positions with what their scaling comes to at these sizes."""
    width = sizes.size(op.dim)
    rotary = width if op.rotary is None else whole(op.rotary, sizes, "`rotary`")
    if op.rotary is not None and (rotary > width or rotary % 2):
        what = f"`rotary` would be {rotary}"
        reason = f"an even number up to the {width} of `{op.dim}` is wanted"
        raise DiagnosticError(BadSize(op.rotary.span, what, reason))
    assert op.theta is not None
    theta = float(number(op.theta, sizes, "`theta`"))
    behind = 0 if op.behind is None else whole(op.behind, sizes, "`behind`")
    if op.behind is not None and behind + rotary > width:
        what = f"`rotary` would be {rotary} elements behind {behind}"
        reason = f"`{op.dim}` has {width}; state `rotary` too"
        raise DiagnosticError(BadSize(op.behind.span, what, reason))
    plain = ops.Rope(
        op.along, op.dim, theta, op.layout, rotary=0 if rotary == width else rotary, behind=behind
    )
    if op.scaling is None:
        return plain
    try:
        found = stretched(plain, op.scaling, rotary, sizes)
        found.speeds(rotary)
    except (ArithmeticError, ValueError):
        what = f"`{op.scaling.name}` can't be computed from these numbers"
        reason = "a speed of some pair would not be finite"
        span = op.scaling.amounts[0][1].span
        raise DiagnosticError(BadSize(span, what, reason)) from None
    return found


def stretched(plain: ops.Rope, scaling: Scaling, width: int, sizes: Sizes) -> ops.Rope:
    """The scaling's numbers as those of the op."""
    found = {
        key: float(number(expr, sizes, f"`{key}` of `{scaling.name}`"))
        for key, expr in scaling.amounts
    }
    factor = found["factor"]
    theta, new = plain.theta, structs.replace
    if scaling.name == "linear":
        return new(plain, factor=factor)
    if scaling.name == "ntk":
        return new(plain, theta=theta * factor ** (width / (width - 2)))
    original = found["original"]
    if scaling.name == "llama3":
        low, high = (2 * math.pi * found[key] / original for key in ("low", "high"))
        return new(plain, factor=factor, ramp="speed", low=low, high=high)
    if scaling.name == "yarn":
        low, high = pair_bounds(found, dict(scaling.words)["bounds"], theta, width)
        magnitude = found.get("magnitude", yarn_magnitude(factor))
        ramp = new(plain, factor=factor, ramp="pair", low=high, high=low)
        return new(ramp, magnitude=magnitude)
    lists = dict(scaling.lists)
    chosen = lists["long" if sizes.size(plain.along) > original else "short"]
    factors = tuple(float(number(each, sizes, "a factor")) for each in chosen)
    if len(factors) != width // 2:
        what = f"`longrope` has {len(factors)} factors"
        reason = f"there are {width // 2} pairs"
        raise DiagnosticError(BadSize(chosen[0].span, what, reason))
    magnitude = found.get("magnitude", longrope_magnitude(factor, original))
    return new(plain, factors=factors, magnitude=magnitude)


def yarn_magnitude(factor: float) -> float:
    """Peng et al. 2023 (YaRN), equation 22: the temperature, as a factor of queries and keys."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def longrope_magnitude(factor: float, original: float) -> float:
    """Ding et al. 2024 (LongRoPE), as Phi-3 uses it."""
    return math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0


def pair_bounds(
    found: dict[str, float], bounds: str, theta: float, width: int
) -> tuple[float, float]:
    """YaRN: the pairs that turn `fast` times, and `slow` times, within the original length."""
    low, high = (
        width * math.log(found["original"] / (turns * 2 * math.pi)) / (2 * math.log(theta))
        for turns in (found["fast"], found["slow"])
    )
    if bounds == "whole":
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0.0), min(high, width - 1.0)
    return low, high + 0.001 if low == high else high
