"""The plan: everything a run needs, as strict data. The generated code follows from it alone."""

from __future__ import annotations

from typing import Literal

import msgspec

from fllmc.ir.foreign import Foreign
from fllmc.ir.program import Program
from fllmc.ir.settings import Data, Train
from fllmc.ir.target import Target
from fllmc.ir.timetable import Timed
from fllmc.ir.types import Type

SCHEMA = "fllmc.plan/1"
ALIGNMENT = 64
"""Bytes; every buffer begins at a multiple of it."""


class Place(msgspec.Struct, frozen=True):
    """Where a value of a function lives.

    `frame`: at byte `number` of the function's frame. `argument`: in the buffer of input `number`,
    in place. `result`: in the buffer that the caller gives for result `number`. `host`: a Python
    float in host slot `number`. `offload`: at byte `number` of the rank's host memory. `none`: it
    has no storage (an alias that nothing reads).
    """

    kind: Literal["frame", "argument", "result", "host", "offload", "none"]
    number: int = 0


class OpPlace(msgspec.Struct, frozen=True):
    """Frame offsets that an op needs besides its values: of its callee's frame and of scratch."""

    frame: int = 0
    scratch: tuple[int, ...] = ()


class Frame(msgspec.Struct, frozen=True):
    """The memory of one function: bytes, the least possible bytes, and the place of each value."""

    function: str
    bytes: int
    live_bytes: int
    places: tuple[Place, ...]
    ops: tuple[OpPlace, ...]
    tile_rows: int = 0


class Stored(msgspec.Struct, frozen=True):
    """A tensor that outlives the step: a parameter, optimizer state, or an entry's other input or
    output. `offset` counts from the arena's start; `initial` is the fill of a state."""

    name: str
    role: Literal["param", "state", "data", "output"]
    type: Type
    offset: int
    bytes: int
    initial: float = 0.0


class Region(msgspec.Struct, frozen=True):
    """A tensor in a bucket: its name, where it begins in the arena, its bytes and its shape."""

    name: str
    offset: int
    bytes: int
    shape: tuple[int, ...]


class Bucket(msgspec.Struct, frozen=True):
    """Tensors that lie one behind another in a rank's arena: one op works on all of them.

    `holds` says what it has of each parameter: `param`, a state of the optimizer, `grad`. Those of
    one `name` have the regions of the same parameters in the same order. A bucket of an entry's
    frame is there while the entry runs.
    """

    name: str
    holds: str
    entry: str
    offset: int
    bytes: int
    regions: tuple[Region, ...]


class Collective(msgspec.Struct, frozen=True):
    """One collective of the program: `bytes` per call and rank, `calls` per step of its entry.

    Bytes are those of the tensor (all_reduce), of the result (all_gather), of the operand
    (reduce_scatter, all_to_all) or of all that a rank hands on (ring_attend and its gradient).
    Those of exchange_rows are a bound: only rows that choices fill are moved.
    `site` is the number by which the generated code names it; it stands at position `op` of
    `function`. `among` are the positions on the axis of those that take part, if not all do. `send`
    and `recv` are of a pipeline op; `port` is the value, `way` its pass, `forward` or `backward`.
    `copied` are the bytes that a rank copies for a call of a gather or scatter, or of several
    collectives as one, to pack and unpack values.
    """

    site: int
    kind: str
    axes: tuple[str, ...]
    bytes: int
    calls: int
    entry: str
    path: str
    dtype: str
    function: str
    op: int
    among: tuple[int, ...] = ()
    port: str = ""
    way: str = ""
    copied: int = 0


class Decision(msgspec.Struct, frozen=True):
    """Something that the compiler chose: what, where, why, and what was not chosen."""

    subject: str
    choice: str
    reason: str
    rejected: str = ""


class FrozenGroup(msgspec.Struct, frozen=True):
    """What a frozen parameter costs a rank, and what it costs when everything trains (`full_`).

    `elements` are those of the whole tensor. Bytes are of storage, codes and scales together, of
    what is stored beside it for its sake (optimizer state, copies in a wider dtype), of gradients
    and their sums, and of what collectives move for it in one step.
    """

    name: str
    elements: int
    stored: int
    beside: int
    gradients: int
    moved: int
    calls: int
    full_stored: int
    full_beside: int
    full_gradients: int
    full_moved: int
    full_calls: int


class Frozen(msgspec.Struct, frozen=True):
    """What freezing saves: figures of this plan, and (`full_`) of the same spec all trained.

    Floating-point operations are of matrix products in one step of a rank, without and within the
    forward pass; bytes kept are the most that are alive at once for the backward pass; bytes moved
    are of all collectives of one step, those of gradients too. `trained` are the rows that train of
    parameters of which other rows are frozen.
    """

    groups: tuple[FrozenGroup, ...]
    forward: int
    backward: int
    kept: int
    moved: int
    full_forward: int
    full_backward: int
    full_kept: int
    full_moved: int
    trained: tuple[FrozenGroup, ...] = ()


class StagePlan(msgspec.Struct, frozen=True):
    """What differs between the ranks of a pipeline; the fields are those of `Plan`."""

    program: Program
    frames: tuple[Frame, ...]
    stored: tuple[Stored, ...]
    arena_bytes: int
    frame_base: int
    collectives: tuple[Collective, ...]
    host_bytes: int
    buckets: tuple[Bucket, ...] = ()


class Plan(msgspec.Struct, frozen=True):
    """The whole plan of one compiled run.

    Where the mesh axis `pipe` is a pipeline's, the fields speak of the ranks at its position 0, and
    `stages` of those at the positions from 1 on. `timeline` is the order of work of its stages in a
    training step, with the times that the compiler reckons with. `host_bytes` is what waits in host
    memory. `foreign` says how parameters lie in a checkpoint of another format. Of a run in stages
    this is the plan of its first part, and `later` are those of the others.
    """

    program: Program
    frames: tuple[Frame, ...]
    stored: tuple[Stored, ...]
    arena_bytes: int
    frame_base: int
    collectives: tuple[Collective, ...]
    data: Data
    train: Train
    target: Target
    decisions: tuple[Decision, ...] = ()
    mesh_read: str = ""
    frozen: Frozen | None = None
    pipe: str = ""
    stages: tuple[StagePlan, ...] = ()
    timeline: tuple[Timed, ...] = ()
    host_bytes: int = 0
    buckets: tuple[Bucket, ...] = ()
    foreign: Foreign | None = None
    later: tuple[Plan, ...] = ()
    schema: str = SCHEMA

    @property
    def parts(self) -> tuple[Plan, ...]:
        """The plans of all parts of the run, one after the other; itself where it has none."""
        return (msgspec.structs.replace(self, later=()), *self.later)

    @property
    def by_stage(self) -> tuple[Plan, ...]:
        """The plans of the ranks at each position of the pipeline axis; itself without one."""
        own = msgspec.structs.replace(self, stages=())
        others = (
            msgspec.structs.replace(
                own, **{name: getattr(stage, name) for name in StagePlan.__struct_fields__}
            )
            for stage in self.stages
        )
        return (own, *others)

    @property
    def fullest(self) -> Plan:
        """The plan of the first pipeline stage that needs most memory."""
        return max(self.by_stage, key=lambda stage: stage.arena_bytes)

    def of_rank(self, rank: int) -> Plan:
        """The plan of the stage that a rank of the mesh has."""
        if not self.stages:
            return self
        return self.by_stage[self.program.mesh.coordinates(rank)[self.pipe]]

    def frame(self, function: str) -> Frame:
        """The frame of a function; KeyError if there is none."""
        for frame in self.frames:
            if frame.function == function:
                return frame
        raise KeyError(function)
