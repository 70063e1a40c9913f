"""How long an op takes at least: its operations, its bytes or its traffic, at the target's peaks.

A roofline (Williams et al. 2009) without efficiencies: good for weighing ops against each other.
Copies to and from host memory go at the rate of the link there; where none is stated at that of the
network, whose adapter has the same slot.
"""

from __future__ import annotations

from typing import Final

from fllmc.ir.flops import op_flops
from fllmc.ir.ops import (
    COLLECTIVES,
    ExchangeRows,
    Fill,
    FromHost,
    Iota,
    Rename,
    Scan,
    Stop,
    ToHost,
    Wait,
)
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.target import Target
from fllmc.ir.types import bare_axes
from fllmc.ir.walk import calls_of, host_values

FREE: Final = (Fill, Iota, Rename, Stop, Wait)
"""Ops whose results are another name of something, or are made while they are used."""


def op_seconds(
    program: Program, function: Function, op: Op, target: Target, host: set[int] | None = None
) -> float:
    """Seconds of one run of an op on one rank; of a scan, of all its runs.

    `host` are the function's host values, if the caller has them.
    """
    numbers = host_values(function) if host is None else host
    if isinstance(op.attrs, FREE) or numbers.issuperset(op.results):
        return 0.0
    if isinstance(op.attrs, Scan):
        runs = calls_of(op, program.sizes)
        return sum(n * function_seconds(program, program.function(f), target) for f, n in runs)
    sizes = program.sizes
    moved = sum(sizes.local_bytes(function.types[v]) for v in (*op.operands, *op.results))
    if isinstance(op.attrs, FromHost | ToHost):
        rate = target.host_gbps or target.network_gbps
        return sizes.local_bytes(function.types[op.results[0]]) / (rate * 1e9)
    if isinstance(op.attrs, COLLECTIVES):
        extent = sizes.mesh.extent(bare_axes(op.attrs.axes))
        rate = target.link_gbps if extent <= target.node else target.network_gbps
        sums = [
            sum(sizes.local_bytes(function.types[v]) for v in values)
            for values in (op.operands, op.results)
        ]
        if isinstance(op.attrs, ExchangeRows):  # as many rows come as go, if chosen alike
            near = sizes.local_bytes(function.types[op.operands[0]])
            whole = min(near, *sums[1:])
        else:
            whole = max(sums)
        return whole * (extent - 1) / extent / (rate * 1e9)
    narrow = function.types[op.results[0]].dtype in ("bf16", "f16")
    peak = (target.bf16_tflops if narrow else target.f32_tflops) * 1e12
    return max(op_flops(function, op, sizes) / peak, moved / (target.memory_gbps * 1e9))


def times(program: Program, function: Function, target: Target) -> list[float]:
    """Seconds of one run of each op of a function."""
    host = host_values(function)
    return [op_seconds(program, function, op, target, host) for op in function.ops]


def function_seconds(program: Program, function: Function, target: Target) -> float:
    """Seconds of one run of a function."""
    return sum(times(program, function, target))
