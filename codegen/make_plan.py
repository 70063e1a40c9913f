"""From a program at plan level to the plan: frames, persistent storage, collectives, decisions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Literal, NamedTuple

from fllmc.codegen.buckets import buckets, stored_runs
from fllmc.codegen.donations import copied_input
from fllmc.codegen.handovers import handover_faults
from fllmc.codegen.host_memory import host_bytes
from fllmc.codegen.meetings import meeting_faults
from fllmc.codegen.memory import persistent, plan_frames, sum_bytes
from fllmc.codegen.packing import copied_bytes
from fllmc.codegen.turns import Turns
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.matrices import state_key
from fllmc.ir.ops import (
    COLLECTIVES,
    AllGather,
    AllReduce,
    AllToAll,
    Coalesced,
    ExchangeRows,
    Fill,
    Pipeline,
    ReduceScatter,
    RingAttend,
    RingAttendGrad,
)
from fllmc.ir.plan import Bucket, Collective, Decision, Frame, Plan, StagePlan, Stored
from fllmc.ir.program import Op, Program
from fllmc.ir.settings import Spec
from fllmc.ir.target import Target
from fllmc.ir.timetable import Timed
from fllmc.ir.types import Sizes, Type, bare_axes
from fllmc.ir.walk import calls_of


def make_plan(
    program: Program,
    spec: Spec,
    target: Target,
    decisions: tuple[Decision, ...] = (),
    mesh_read: str = "",
    pipe: str = "",
    others: Sequence[Program] = (),
    timeline: tuple[Timed, ...] = (),
) -> Plan:
    """The plan of a program at plan level.

    With a pipeline axis `pipe` it is that of position 0 there, and `others` are of those behind.
    """
    made, *behind = derived_all((program, *others))
    check_stages((program, *others), pipe)
    stages = tuple(StagePlan(other, *own) for other, own in zip(others, behind, strict=True))
    return Plan(
        program=program,
        frames=made.frames,
        stored=made.stored,
        arena_bytes=made.arena_bytes,
        frame_base=made.frame_base,
        collectives=made.collectives,
        host_bytes=made.host_bytes,
        buckets=made.buckets,
        data=spec.data,
        train=spec.train,
        decisions=decisions,
        mesh_read=mesh_read,
        target=target,
        pipe=pipe,
        stages=stages,
        timeline=timeline,
        foreign=spec.foreign,
    )


def check_stages(programs: Sequence[Program], pipe: str) -> None:
    """InternalError unless the stages of a pipeline hand over what they should, with no buffering,
    and make the same calls where they meet.

    Stages are checked entry by entry: a pipeline op is the only one of its entry.
    """
    if len(programs) == 1:
        return
    for entry in programs[0].entries:
        ops = [[op.attrs for op in p.function(entry).ops] for p in programs]
        found = [[attrs for attrs in own if isinstance(attrs, Pipeline)] for own in ops]
        turns = [Turns(p, own[0]) for p, own in zip(programs, found, strict=True) if own]
        faults = handover_faults(turns) + meeting_faults(programs, entry, pipe)
        if faults:
            raise InternalError(f"{entry}: {faults[0]}")


class Derived(NamedTuple):
    """What of a plan follows from its program alone; see `ir/plan.py` for the fields."""

    frames: tuple[Frame, ...]
    stored: tuple[Stored, ...]
    arena_bytes: int
    frame_base: int
    collectives: tuple[Collective, ...]
    host_bytes: int
    buckets: tuple[Bucket, ...]


def derived_all(programs: Sequence[Program]) -> list[Derived]:
    """What follows from the programs of a pipeline's stages; what is alike is planned once."""
    known: list[tuple[Program, Mapping[str, Frame]]] = []
    found: list[Derived] = []
    for program in programs:
        frames = plan_frames(program, known)
        known.append((program, frames))
        found.append(derived(program, frames))
    return found


def derived(program: Program, frames: Mapping[str, Frame]) -> Derived:
    """Persistent storage and collectives of a program at plan level, beside its frames."""
    stored, base = stored_tensors(program, frames)
    peak = max((frames[name].bytes for name in program.entries), default=0)
    ordered = tuple(frames[name] for name in sorted(frames))
    waiting = host_bytes(program)
    adjoining = buckets(program, frames, stored, base)
    return Derived(
        ordered, stored, base + peak, base, collectives(program, frames), waiting, adjoining
    )


def follows(plan: Plan) -> bool:
    """Whether the plan's memory and collectives are those that its program gives."""
    stages = plan.by_stage
    return all(
        tuple(getattr(p, name) for name in Derived._fields) == own
        for p, own in zip(stages, derived_all([p.program for p in stages]), strict=True)
    )


def stored_tensors(program: Program, frames: Mapping[str, Frame]) -> tuple[tuple[Stored, ...], int]:
    """Inputs and outputs of the entries, one after another at the arena's start, and their end."""
    found = kept_values(program, frames)
    runs = {names[0]: names for names in stored_runs(program, frames)}
    inside = {name for names in runs.values() for name in names[1:]}
    alone = [name for name in found if name not in inside]
    heads = sorted(alone, key=lambda name: ROLES.index(found[name].role))
    groups = [runs.get(name, (name,)) for name in heads]
    names = [name for group in groups for name in group]
    kinds = [[found[name].type for name in group] for group in groups]
    offsets, end = persistent(program.sizes, kinds, 0)
    initial = state_values(program)
    stored: list[Stored] = []
    for name, offset in zip(names, offsets, strict=True):
        role, kind = found[name]
        begin = initial_value(program, initial, name) if role == "state" else 0.0
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


def initial_value(program: Program, initial: Mapping[str, float], name: str) -> float:
    """What a parameter's state begins with; `initial` is that of each optimizer's states."""
    path, _, state = name.partition("#")
    groups = {each.name: each.group for each in program.parameters}
    return initial.get(state_key(groups.get(path, 0), state), 0.0)


def state_values(program: Program) -> dict[str, float]:
    """What each optimizer state begins with."""
    if all(function.name != "optimizer.states" for function in program.functions):
        return {}
    function = program.function("optimizer.states")
    makers = {value: op.attrs for op in function.ops for value in op.results}
    fills = ((name, makers[v]) for name, v in zip(function.outputs, function.results, strict=True))
    return {name: attrs.value for name, attrs in fills if isinstance(attrs, Fill)}


def collectives(program: Program, frames: Mapping[str, Frame]) -> tuple[Collective, ...]:
    """Every collective of every entry, with bytes and calls; sites are numbered in text order."""
    found: list[Collective] = []
    sites: dict[tuple[str | int, ...], int] = {}

    def visit(name: str, entry: str, calls: int) -> None:
        function = program.function(name)
        for at, op in enumerate(function.ops):
            if isinstance(op.attrs, COLLECTIVES):
                site = sites.setdefault((name, at), len(sites))
                found.append(describe(program, frames[name], op, at, calls, entry, site))
            if isinstance(op.attrs, Pipeline):
                for kind, port, way, bytes_, times in transfers(program, op.attrs):
                    site = sites.setdefault((name, at, kind, port), len(sites))
                    found.append(
                        Collective(
                            site,
                            kind,
                            (op.attrs.axis,),
                            bytes_,
                            calls * times,
                            entry,
                            op.path,
                            "",
                            name,
                            at,
                            port=port,
                            way=way,
                        )
                    )
            for callee, times in calls_of(op, program.sizes):
                visit(callee, entry, calls * times)

    for entry in program.entries:
        visit(entry, entry, 1)
    return tuple(found)


def transfers(program: Program, attrs: Pipeline) -> Iterator[tuple[str, str, str, int, int]]:
    """What a pipeline op sends and receives: kind, port, way, bytes and calls of each."""
    turns = Turns(program, attrs)
    for port in turns.counts:
        size = program.sizes.local_bytes(turns.types[port])
        if turns.leaves(port):
            calls = sum(other == port for other, _ in turns.written)
            yield "send", port, turns.way(port), size, calls
        if turns.arrives(port):
            calls = sum(other == port for other, _ in turns.read)
            yield "recv", port, turns.way(port), size, calls


def describe(
    program: Program, frame: Frame, op: Op, at: int, calls: int, entry: str, site: int
) -> Collective:
    """One collective of the function that has the frame."""
    function, attrs = program.function(frame.function), op.attrs
    assert isinstance(
        attrs,
        AllReduce | AllGather | AllToAll | Coalesced | ExchangeRows | ReduceScatter | RingAttend,
    )
    kind = function.types[op.operands[0]]
    moved = program.sizes.local_bytes(kind)
    if isinstance(attrs, Coalesced):
        values = op.results if attrs.collective == "all_gather" else op.operands
        moved = sum(program.sizes.local_bytes(function.types[value]) for value in values)
    elif isinstance(attrs, AllGather):
        moved = program.sizes.local_bytes(function.types[op.results[0]])
    elif isinstance(attrs, RingAttend):
        pair = [function.types[value] for value in op.operands[1:3]]
        moved = handed_on(attrs, pair, program.sizes)
    return Collective(
        site=site,
        kind=attrs.collective if isinstance(attrs, Coalesced) else attrs.kind,
        axes=bare_axes(attrs.axes),
        bytes=moved,
        calls=calls,
        entry=entry,
        path=op.path,
        dtype=kind.dtype,
        function=function.name,
        op=at,
        among=attrs.among if isinstance(attrs, AllReduce) else (),
        copied=copied_bytes(at, function, program.sizes, frame),
    )


def handed_on(attrs: RingAttend, pair: Sequence[Type], sizes: Sizes) -> int:
    """The bytes that a rank sends round a ring of attention.

    Keys and values go to all but where they are from, and their gradients once round.
    """
    ranks = sizes.mesh.extent(attrs.axes)
    total = (ranks - 1) * sum(sizes.local_bytes(kind) for kind in pair)
    if isinstance(attrs, RingAttendGrad):
        total += ranks * sum(sizes.local_elements(k) * sum_bytes(k) for k in pair)
    return total
