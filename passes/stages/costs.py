"""What each unit of a pipeline costs: floating-point operations of one micro-batch, both ways."""

from __future__ import annotations

from fllmc.ir.flops import op_flops
from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import DTYPE_BYTES
from fllmc.passes.stages.body import Body, scan_attrs

FLOPS_PER_BYTE = 100
"""What moving a byte of a result counts for, so that ops without products have a cost too.

Between the 30 or so of a CPU core and the 300 of an H100 in bf16.
"""


def unit_costs(program: Program, body: Body) -> tuple[list[float], list[list[float]]]:
    """The costs of the groups between stacks, and of the layers of each stack."""
    groups = [0.0] * (len(body.scans) + 1)
    layers = [0.0] * len(body.scans)
    for at, op in enumerate(body.function.ops):
        spot = body.spots[at]
        if spot.stack >= 0:
            inner = program.function(scan_attrs(op).function)
            layers[spot.stack] += function_cost(program, inner)
        elif not spot.free and not spot.stacked:
            groups[spot.group] += op_cost(program, body.function, op)
    sizes = [program.sizes.size(scan_attrs(body.function.ops[at]).over) for at in body.scans]
    return groups, [[cost] * size for cost, size in zip(layers, sizes, strict=True)]


def function_cost(program: Program, function: Function) -> float:
    """The cost of all ops of a function."""
    return sum(op_cost(program, function, op) for op in function.ops)


def op_cost(program: Program, function: Function, op: Op) -> float:
    """The cost of one op."""
    if isinstance(op.attrs, Scan):
        inner = function_cost(program, program.function(op.attrs.function))
        return inner * program.sizes.size(op.attrs.over)
    moved = sum(
        program.sizes.local_elements(function.types[v]) * DTYPE_BYTES[function.types[v].dtype]
        for v in op.results
    )
    return op_flops(function, op, program.sizes) + FLOPS_PER_BYTE * moved
