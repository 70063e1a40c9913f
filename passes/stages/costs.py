"""What each unit of a pipeline costs: seconds of one micro-batch on a target, both ways.

The times are those of `passes/roofline.py`, bytes and collectives included, but that elementwise
ops and sums are taken to be made where they are used: they take the time to move what comes into
such a group and what goes out.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir.ops import Scan
from fllmc.ir.program import DimSize, Function, Op, Program
from fllmc.ir.target import Target
from fllmc.ir.timetable import Kind
from fllmc.ir.types import Mesh, Type
from fllmc.ir.walk import host_values
from fllmc.passes.fuse import fusable
from fllmc.passes.roofline import op_seconds
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.stages.body import Body, scan_attrs
from fllmc.passes.stages.cut_body import StageWork


def unit_costs(
    program: Program, body: Body, target: Target
) -> tuple[list[float], list[list[float]]]:
    """The seconds of the groups between stacks, and of the layers of each stack."""
    groups: list[list[Op]] = [[] for _ in range(len(body.scans) + 1)]
    layers = [0.0] * len(body.scans)
    for at, op in enumerate(body.function.ops):
        spot = body.spots[at]
        if spot.stack >= 0:
            inner = program.function(scan_attrs(op).function)
            layers[spot.stack] += fused_seconds(program, inner, inner.ops, target)
        elif not spot.free and not spot.stacked:
            groups[spot.group].append(op)
    sizes = [program.sizes.size(scan_attrs(body.function.ops[at]).over) for at in body.scans]
    times = [fused_seconds(program, body.function, ops, target) for ops in groups]
    return times, [[cost] * size for cost, size in zip(layers, sizes, strict=True)]


def fused_seconds(program: Program, function: Function, ops: Sequence[Op], target: Target) -> float:
    """Seconds of some ops of a function, those that can be fused as if they were."""
    host = host_values(function)
    inside = {v for op in ops if fusable(op) for v in op.results} - host
    others = (op for op in function.ops if not inside.issuperset(op.results))
    outside = {*function.results, *(v for op in others for v in op.operands)}
    moved: dict[int, None] = {}
    seconds = 0.0
    for op in ops:
        if isinstance(op.attrs, Scan):
            inner = program.function(op.attrs.function)
            count = program.sizes.size(op.attrs.over)
            seconds += count * fused_seconds(program, inner, inner.ops, target)
        elif fusable(op):
            moved |= dict.fromkeys(v for v in op.operands if v not in inside and v not in host)
            moved |= dict.fromkeys(v for v in op.results if v in outside and v in inside)
        else:
            seconds += op_seconds(program, function, op, target, host)
    whole = sum(program.sizes.local_bytes(function.types[v]) for v in moved)
    return seconds + whole / (target.memory_gbps * 1e9)


def stage_costs(
    program: Program, works: Sequence[StageWork], target: Target, axis: str = ""
) -> Costs:
    """The seconds of each stage's actions and of handing on, and the bytes of a micro-batch kept.

    `axis` is the pipeline's; handing a value on takes no time without one.
    """
    times: dict[str, list[float]] = {kind: [] for kind in ("F", "I", "W", "kept", "late")}
    sent = 0
    for work in works:
        stage = of_stage(program, work)
        functions = {
            kind: fused_seconds(stage, function, function.ops, target)
            for kind, function in work.functions.items()
        }
        whole = functions.get("B", 0.0)  # half of a backward is the input's, half the weights'
        times["F"].append(functions.get("F", 0.0))
        times["I"].append(functions.get("I", whole / 2))
        times["W"].append(functions.get("W", whole / 2 if "I" not in functions else 0.0))
        times["late"].append(kept_bytes(stage, work, ("W",)))
        times["kept"].append(kept_bytes(stage, work, ("B", "I", "W")))
        sent = max(sent, *(sent_bytes(stage, work, each) for each in work.functions.values()))
    found = {kind: tuple(values) for kind, values in times.items()}
    transfer = sent / link_rate(program.mesh, axis, target) if axis else 0.0
    return Costs(found["F"], found["I"], found["W"], found["kept"], found["late"], transfer)


def sent_bytes(program: Program, work: StageWork, function: Function) -> int:
    """What a function hands to other stages, of one rank."""
    pairs = zip(function.outputs, function.signature.results, strict=True)
    return sum(program.sizes.local_bytes(kind) for name, kind in pairs if name in work.gives)


def link_rate(mesh: Mesh, axis: str, target: Target) -> float:
    """Bytes a second between neighbours on an axis: by the network if it reaches over nodes."""
    names = [each.name for each in mesh.axes]
    reach = mesh.extent(names[names.index(axis) :])
    return (target.link_gbps if reach <= target.node else target.network_gbps) * 1e9


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
