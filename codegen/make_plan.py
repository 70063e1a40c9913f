"""From a program at plan level to the plan: frames, persistent storage, collectives, decisions."""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.codegen.donations import copied_input
from fllmc.codegen.memory import persistent, plan_frames
from fllmc.ir.ops import COLLECTIVES, AllGather, AllReduce, ReduceScatter, Scan
from fllmc.ir.plan import Collective, Decision, Frame, Plan, Stored
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.settings import Spec
from fllmc.ir.target import Target
from fllmc.ir.types import Type


def make_plan(
    program: Program,
    spec: Spec,
    target: Target,
    decisions: tuple[Decision, ...] = (),
    mesh_read: str = "",
) -> Plan:
    """The plan of a program at plan level."""
    frames = plan_frames(program)
    stored, base = stored_tensors(program, frames)
    peak = max((frames[name].bytes for name in program.entries), default=0)
    return Plan(
        program=program,
        frames=tuple(frames[name] for name in sorted(frames)),
        stored=stored,
        arena_bytes=base + peak,
        frame_base=base,
        collectives=collectives(program),
        data=spec.data,
        train=spec.train,
        decisions=decisions,
        mesh_read=mesh_read,
        target=target,
    )


def stored_tensors(program: Program, frames: Mapping[str, Frame]) -> tuple[tuple[Stored, ...], int]:
    """Inputs and outputs of the entries, one after another at the arena's start, and their end."""
    found: dict[str, tuple[str, Type]] = {}
    for name in program.entries:
        function = program.function(name)
        for number, given in enumerate(function.inputs):
            if given.role != "host":
                role = given.role if given.role != "value" else "data"
                found.setdefault(given.name, (role, function.types[number]))
        for result, output in enumerate(function.outputs):
            value = function.results[result]
            kind = function.types[value]
            if output not in found:
                found[output] = ("output", kind)
            elif copied_input(function, frames[name], result) is not None:
                found[f"{output}'"] = ("output", kind)
    order = {"param": 0, "state": 1, "data": 2, "output": 3}
    names = sorted(found, key=lambda name: order[found[name][0]])
    offsets, end = persistent(program.sizes, [found[name][1] for name in names], 0)
    initial = state_values(program)
    return tuple(
        Stored(
            name,
            found[name][0],  # type: ignore[arg-type]
            found[name][1],
            offset,
            program.sizes.local_bytes(found[name][1]),
            initial.get(name.rpartition("#")[2], 0.0) if found[name][0] == "state" else 0.0,
        )
        for name, offset in zip(names, offsets, strict=True)
    ), end


def state_values(program: Program) -> dict[str, float]:
    """What each optimizer state begins with."""
    if all(function.name != "optimizer.states" for function in program.functions):
        return {}
    function = program.function("optimizer.states")
    makers = {value: op for op in function.ops for value in op.results}
    return {
        name: float(makers[value].attrs.value)  # type: ignore[union-attr]
        for name, value in zip(function.outputs, function.results, strict=True)
    }


def collectives(program: Program) -> tuple[Collective, ...]:
    """Every collective of every entry, with bytes and calls; sites are numbered in text order."""
    found: list[Collective] = []
    sites: dict[tuple[str, int], int] = {}

    def visit(name: str, entry: str, calls: int) -> None:
        function = program.function(name)
        for at, op in enumerate(function.ops):
            if isinstance(op.attrs, COLLECTIVES):
                site = sites.setdefault((name, at), len(sites))
                found.append(describe(program, function, op, at, calls, entry, site))
            callee = getattr(op.attrs, "function", "")
            if callee:
                times = program.sizes.size(op.attrs.over) if isinstance(op.attrs, Scan) else 1
                visit(callee, entry, calls * times)

    for entry in program.entries:
        visit(entry, entry, 1)
    return tuple(found)


def describe(
    program: Program, function: Function, op: Op, at: int, calls: int, entry: str, site: int
) -> Collective:
    """One collective."""
    attrs = op.attrs
    assert isinstance(attrs, AllReduce | AllGather | ReduceScatter)
    moved = op.results[0] if isinstance(attrs, AllGather) else op.operands[0]
    kind = function.types[moved]
    return Collective(
        site=site,
        kind=attrs.kind,
        axes=attrs.axes,
        bytes=program.sizes.local_bytes(kind),
        calls=calls,
        entry=entry,
        path=op.path,
        dtype=kind.dtype,
        function=function.name,
        op=at,
    )
