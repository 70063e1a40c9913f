"""What each unit of a pipeline costs: floating-point operations of one micro-batch, both ways."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir.flops import op_flops
from fllmc.ir.ops import Scan
from fllmc.ir.program import DimSize, Function, Op, Program
from fllmc.ir.timetable import Kind
from fllmc.ir.types import DTYPE_BYTES, Type
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.stages.body import Body, scan_attrs
from fllmc.passes.stages.cut_body import StageWork

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


def stage_costs(program: Program, works: Sequence[StageWork]) -> Costs:
    """The times of each stage's actions, and the bytes that a micro-batch keeps there."""
    times: dict[str, list[float]] = {kind: [] for kind in ("F", "I", "W", "kept", "late")}
    for work in works:
        stage = of_stage(program, work)
        functions = {
            kind: function_cost(stage, function) for kind, function in work.functions.items()
        }
        whole = functions.get("B", 0.0)  # half of a backward is the input's, half the weights'
        times["F"].append(functions.get("F", 0.0))
        times["I"].append(functions.get("I", whole / 2))
        times["W"].append(functions.get("W", whole / 2 if "I" not in functions else 0.0))
        times["late"].append(kept_bytes(stage, work, ("W",)))
        times["kept"].append(kept_bytes(stage, work, ("B", "I", "W")))
    found = {kind: tuple(values) for kind, values in times.items()}
    return Costs(found["F"], found["I"], found["W"], found["kept"], found["late"])


def of_stage(program: Program, work: StageWork) -> Program:
    """The program with the sizes that a stage's layers have."""
    own = {stretch.part: stretch.size for stretch in work.stretches}
    sizes = tuple(structs.replace(d, size=own.get(d.name, d.size)) for d in program.dims)
    known = {dim.name for dim in program.dims}
    sizes += tuple(DimSize(name, size) for name, size in own.items() if name not in known)
    return structs.replace(program, dims=sizes)


def kept_bytes(program: Program, work: StageWork, readers: Sequence[Kind]) -> float:
    """Bytes of what the forward makes or takes that these read later."""
    first = work.functions.get("F")
    if first is None:
        return 0.0
    made = {given.name for given in first.inputs if given.name in work.takes} | set(first.outputs)
    kinds: dict[str, Type] = {}
    for kind in readers:
        function = work.functions.get(kind)
        if function is not None:
            kinds |= {
                given.name: held
                for given, held in zip(function.inputs, function.types, strict=False)
                if given.name in made and given.role == "value"
            }
    return float(sum(program.sizes.local_bytes(held) for held in kinds.values()))
