"""From a program at plan level to the plan: frames, persistent storage, collectives, decisions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

from fllmc.codegen.donations import copied_input
from fllmc.codegen.memory import persistent, plan_frames, sum_bytes
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import (
    COLLECTIVES,
    AllGather,
    AllReduce,
    Fill,
    ReduceScatter,
    RingAttend,
    RingAttendGrad,
)
from fllmc.ir.plan import Collective, Decision, Frame, Plan, Stored
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.settings import Spec
from fllmc.ir.target import Target
from fllmc.ir.types import Sizes, Type, bare_axes
from fllmc.ir.walk import runs_of


def make_plan(
    program: Program,
    spec: Spec,
    target: Target,
    decisions: tuple[Decision, ...] = (),
    mesh_read: str = "",
) -> Plan:
    """The plan of a program at plan level."""
    made = derived(program)
    return Plan(
        program=program,
        frames=made.frames,
        stored=made.stored,
        arena_bytes=made.arena_bytes,
        frame_base=made.frame_base,
        collectives=made.collectives,
        data=spec.data,
        train=spec.train,
        decisions=decisions,
        mesh_read=mesh_read,
        target=target,
    )


class Derived(NamedTuple):
    """What of a plan follows from its program alone; see `ir/plan.py` for the fields."""

    frames: tuple[Frame, ...]
    stored: tuple[Stored, ...]
    arena_bytes: int
    frame_base: int
    collectives: tuple[Collective, ...]


def derived(program: Program) -> Derived:
    """Frames, persistent storage and collectives of a program at plan level."""
    frames = plan_frames(program)
    stored, base = stored_tensors(program, frames)
    peak = max((frames[name].bytes for name in program.entries), default=0)
    ordered = tuple(frames[name] for name in sorted(frames))
    return Derived(ordered, stored, base + peak, base, collectives(program))


def follows(plan: Plan) -> bool:
    """Whether the plan's memory and collectives are those that its program gives."""
    given = (plan.frames, plan.stored, plan.arena_bytes, plan.frame_base, plan.collectives)
    return given == derived(plan.program)


def stored_tensors(program: Program, frames: Mapping[str, Frame]) -> tuple[tuple[Stored, ...], int]:
    """Inputs and outputs of the entries, one after another at the arena's start, and their end."""
    found = kept_values(program, frames)
    names = sorted(found, key=lambda name: ROLES.index(found[name].role))
    offsets, end = persistent(program.sizes, [found[name].type for name in names], 0)
    initial = state_values(program)
    stored: list[Stored] = []
    for name, offset in zip(names, offsets, strict=True):
        role, kind = found[name]
        begin = initial.get(name.rpartition("#")[2], 0.0) if role == "state" else 0.0
        size = program.sizes.local_bytes(kind)
        stored.append(Stored(name, role, kind, offset, size, begin))
    return tuple(stored), end


StoredRole = Literal["param", "state", "data", "output"]
ROLES: Final[tuple[StoredRole, ...]] = ("param", "state", "data", "output")
"""The order of the stored tensors."""


class Kept(NamedTuple):
    """A value that outlives an entry's run."""

    role: StoredRole
    type: Type


def kept_values(program: Program, frames: Mapping[str, Frame]) -> dict[str, Kept]:
    """The entries' inputs and outputs by name; `NAME'` is what will be copied to input NAME."""
    found: dict[str, Kept] = {}

    def keep(name: str, role: StoredRole, kind: Type) -> None:
        if found.setdefault(name, Kept(role, kind)).type != kind:
            raise InternalError(f"entries disagree: {name} is {found[name].type} and {kind}")

    for entry in program.entries:
        function = program.function(entry)
        for given, kind in zip(function.inputs, function.types, strict=False):
            if given.role != "host":
                keep(given.name, "data" if given.role == "value" else given.role, kind)
        for result, output in enumerate(function.outputs):
            kind = function.types[function.results[result]]
            apart = copied_input(function, frames[entry], result) is not None
            keep(f"{output}'" if apart else output, "output", kind)
    return found


def state_values(program: Program) -> dict[str, float]:
    """What each optimizer state begins with."""
    if all(function.name != "optimizer.states" for function in program.functions):
        return {}
    function = program.function("optimizer.states")
    makers = {value: op.attrs for op in function.ops for value in op.results}
    fills = ((name, makers[v]) for name, v in zip(function.outputs, function.results, strict=True))
    return {name: attrs.value for name, attrs in fills if isinstance(attrs, Fill)}


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
            for callee, times in runs_of(op, program.sizes):
                visit(callee, entry, calls * times)

    for entry in program.entries:
        visit(entry, entry, 1)
    return tuple(found)


def describe(
    program: Program, function: Function, op: Op, at: int, calls: int, entry: str, site: int
) -> Collective:
    """One collective."""
    attrs = op.attrs
    assert isinstance(attrs, AllReduce | AllGather | ReduceScatter | RingAttend)
    kind = function.types[op.operands[0]]
    moved = program.sizes.local_bytes(kind)
    if isinstance(attrs, AllGather):
        moved = program.sizes.local_bytes(function.types[op.results[0]])
    elif isinstance(attrs, RingAttend):
        moved = handed_on(attrs, function.types[op.operands[1]], program.sizes)
    return Collective(
        site=site,
        kind=attrs.kind,
        axes=bare_axes(attrs.axes),
        bytes=moved,
        calls=calls,
        entry=entry,
        path=op.path,
        dtype=kind.dtype,
        function=function.name,
        op=at,
    )


def handed_on(attrs: RingAttend, keys: Type, sizes: Sizes) -> int:
    """The bytes that a rank sends round a ring of attention.

    Keys and values go to all but where they are from, and their gradients once round.
    """
    ranks = sizes.mesh.extent(attrs.axes)
    total = 2 * (ranks - 1) * sizes.local_bytes(keys)
    if isinstance(attrs, RingAttendGrad):
        total += 2 * ranks * sizes.local_elements(keys) * sum_bytes(keys)
    return total
