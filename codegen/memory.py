"""Memory: values of a function to places, lifetimes to offsets.

Values that share storage form a class: renamed values, and results that an op may write over an
operand that dies there. A class lives in an input's buffer (in place), in a buffer that the caller
gives for a result, or in the function's own frame. Frames are planned callees first; a callee's
frame is one more item of its caller's, live during the call.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fllmc.codegen.buckets import more_runs, position, runs, value_lists
from fllmc.codegen.donations import (
    behind_donations,
    entry_donations,
    layout,
    overwritable,
    overwrites,
    same_donations,
    scan_donations,
    staged,
    updated_carry,
    updated_operand,
)
from fllmc.codegen.host_memory import away_from
from fllmc.codegen.offsets import Item, aligned, live_bytes, offsets
from fllmc.codegen.packing import in_one_piece, packed_bytes, packed_lists
from fllmc.codegen.storage_classes import Classes
from fllmc.codegen.tiles import rows_of, tile_rows
from fllmc.codegen.turns import Turns
from fllmc.ir.ops import (
    AddN,
    AllGather,
    AllToAll,
    Bucketed,
    Coalesced,
    Elementwise,
    ExchangeRows,
    Fused,
    Pipeline,
    ReduceScatter,
    ReduceSum,
    RingAttend,
    RingAttendGrad,
    Scan,
)
from fllmc.ir.plan import Frame, OpPlace, Place
from fllmc.ir.program import Function, Op, Program, callees
from fllmc.ir.types import DTYPE_BYTES, Sizes, Type
from fllmc.ir.walk import host_values


class Planner:
    """Plans the frame of one function, given those of its callees.

    `donated` names, for a result, the inputs that it may be written over. `rows` are those of a
    fused group, whose frame holds one tile. A class with an input in it has that input as root.
    """

    def __init__(
        self,
        function: Function,
        program: Program,
        frames: Mapping[str, Frame],
        donated: Mapping[int, Sequence[int]],
        rows: tuple[str, ...] = (),
    ):
        self.function = function
        self.program = program
        self.sizes = program.sizes
        self.frames = frames
        self.donated = dict(donated)
        self.rows = rows
        self.tile = tile_rows(function, rows, self.sizes) if rows else 0
        self.classes = Classes(function)
        self.inputs = len(function.inputs)
        self.host = host_values(function)
        self.away = away_from(function, program)
        self.in_place: dict[int, int] = {}
        self.runs: list[tuple[int, ...]] = []

    def bytes(self, kind: Type) -> int:
        """Bytes of a value; of one tile of it inside a fused group."""
        if self.rows and kind.names[: len(self.rows)] == self.rows:
            inner = self.sizes.local_elements(kind.without(self.rows))
            return aligned(self.tile * inner * DTYPE_BYTES[kind.dtype])
        return aligned(self.sizes.local_bytes(kind))

    def reusable(self, op: Op, result: int) -> list[int]:
        """Operands whose storage the op may write its `result`-th result over."""
        kind = layout(self.function.types[op.results[result]])
        match op.attrs:
            case Fused(function=name):
                found = self.fused_reusable(op, name, result)
            case Bucketed(function=name):
                found = self.bucket_reusable(op, op.attrs, result)
            case Pipeline():
                found = [op.operands[result]]
            case Scan(carries=carries):
                found = (
                    [op.operands[result]] if result < carries else self.scan_reusable(op, result)
                )
            case _:
                found = overwritable(op)
        pointwise = isinstance(op.attrs, Bucketed | Fused | Elementwise) and not isinstance(
            op.attrs, AddN
        )
        fits = self.alike if pointwise else self.alone
        return [v for v in found if self.layout(v) == kind and v not in self.host and fits(v, op)]

    def alone(self, value: int, op: Op) -> bool:
        """Whether no other operand of the op has the storage of this one."""
        mine = self.classes.find(value)
        return sum(self.classes.find(other) == mine for other in op.operands) == 1

    def alike(self, value: int, op: Op) -> bool:
        """Whether all operands with the storage of this one are the same view of it."""
        mine = self.classes.find(value)
        same = [other for other in op.operands if self.classes.find(other) == mine]
        return all(self.layout(other) == self.layout(value) for other in same)

    def layout(self, value: int) -> tuple[str, tuple[str, ...]]:
        """What must agree for two values to share storage."""
        return layout(self.function.types[value])

    def fused_reusable(self, op: Op, name: str, result: int) -> list[int]:
        """Operands that the group has read before it first writes that result, tile by tile."""
        late = self.late_inputs(op, name, result)
        taken = {self.classes.find(op.operands[number]) for number in late}
        return [v for v in op.operands if self.classes.find(v) not in taken]

    def bucket_reusable(self, op: Op, attrs: Bucketed, result: int) -> list[int]:
        """Of the lists that are read before the result's list is written, its region's value."""
        body = self.program.function(attrs.function)
        number, region = position(op, body, result)
        late = self.late_inputs(op, attrs.function, number)
        lists = enumerate(attrs.listed(op.operands))
        return [values[region] for given, values in lists if given not in late]

    def late_inputs(self, op: Op, name: str, result: int) -> set[int]:
        """Inputs of a group that it may read when part of that result is written already."""
        body = self.program.function(name)
        classes = Classes(body)
        rows = rows_of(op)
        if body.types[body.results[result]].names[: len(rows)] != rows:
            return set(range(len(body.inputs)))
        target = Place("result", result)
        places = self.frames[name].places
        made = [value for value, place in enumerate(places) if place == target]
        first = min((classes.first[value] for value in made), default=len(body.ops))
        late: set[int] = set()
        for number in range(len(body.inputs)):
            last = classes.last[classes.find(number)]
            if last > first or (last == first and not overwrites(body, classes, first, number)):
                late.add(number)
        return late

    def scan_reusable(self, op: Op, result: int) -> list[int]:
        """The slice operand that is updated in place to make a stacked result."""
        assert isinstance(op.attrs, Scan)
        given = updated_operand(self.program, self.frames, op.attrs, result)
        return [] if given is None else [op.operands[given]]

    def chain(self, value: int, given: int) -> list[int]:
        """Values from input `given` to `value`, each written over the one before, or nothing."""
        makers = {v: (at, op) for at, op in enumerate(self.function.ops) for v in op.results}
        start = self.classes.find(given)

        def back(value: int) -> list[int]:
            root = self.classes.find(value)
            if root == start:
                return [value]
            if root < self.inputs:
                return []
            at, op = makers[root]  # the others of its class are aliases
            for operand in self.reusable(op, op.results.index(root)):
                if self.classes.ends(operand, at):
                    found = back(operand)
                    if found:
                        return [*found, value]
            return []

        return back(value)

    def join_donated(self) -> None:
        """Update inputs in place where a chain of overwriting ops leads from input to result."""
        for result, candidates in sorted(self.donated.items()):
            value = self.function.results[result]
            for given in candidates:
                path = [] if given in self.in_place.values() else self.chain(value, given)
                if path:
                    for later in path:
                        self.classes.join(given, later)
                    self.in_place[result] = given
                    break

    def join_dying(self) -> None:
        """Let results overwrite operands that die."""
        for at, op in enumerate(self.function.ops):
            for result, value in enumerate(op.results):
                mine = self.classes.find(value)
                if isinstance(op.attrs, Bucketed) or any(
                    self.classes.find(v) == mine for v in op.operands
                ):
                    continue  # adjoins others, an alias, or written over an operand already
                if self.rows and self.holds(mine, self.function.results):
                    continue  # written last of all, so that the caller may reuse an operand for it
                dying = [v for v in self.reusable(op, result) if self.dies(v, op, at)]
                if dying:
                    self.classes.join(dying[0], value)

    def dies(self, value: int, op: Op, at: int) -> bool:
        """Whether the storage of an operand is free after the op, and no result has it already."""
        old = self.classes.find(value)
        kept = old < self.inputs or self.holds(old, op.results)
        return self.classes.ends(value, at) and not kept

    def holds(self, root: int, values: Iterable[int]) -> bool:
        """Whether some of the values are in the class."""
        return any(self.classes.find(value) == root for value in values)

    def places(self, frame_offset: Mapping[int, int]) -> tuple[Place, ...]:
        """The place of every value, given the frame offset of each class that has one."""
        bound: dict[int, int] = {}
        for result, value in enumerate(self.function.results):
            bound.setdefault(self.classes.find(value), result)

        def place(value: int) -> Place:
            root = self.classes.find(value)
            if value in self.host:
                return Place("host", value)
            if value in self.away:
                return Place("offload", self.away[value])
            if root < self.inputs:
                return Place("argument", root)
            if root in frame_offset:
                return Place("frame", frame_offset[root])
            return Place("result", bound[root])

        return tuple(place(value) for value in range(len(self.function.types)))

    def own_items(self) -> tuple[list[tuple[int, ...]], list[Item]]:
        """The classes that live in the frame, those of a bucket together, with their lifetimes."""
        bound = {self.classes.find(value) for value in self.function.results}
        elsewhere = bound | self.host | set(self.away) | set(range(self.inputs))
        find, types = self.classes.find, self.function.types
        lists = [tuple(map(find, v)) for _, _, v in value_lists(self.function, self.program)]
        wishes = [tuple(map(find, v)) for op in self.function.ops for v in packed_lists(op)]
        self.runs = runs(lists, lambda root: root in elsewhere)
        self.runs = more_runs(self.runs, wishes, lambda root: root in elsewhere)
        held = {run[0]: run for run in self.runs}
        behind = {root for run in held.values() for root in run[1:]}
        found: list[tuple[int, ...]] = []
        items: list[Item] = []
        for value in range(self.inputs, len(types)):
            if find(value) == value and value not in elsewhere and value not in behind:
                run = held.get(value, (value,))
                start = min(self.classes.first[root] for root in run)
                stop = max(self.classes.last[root] for root in run)
                sizes = [self.sizes.local_bytes(types[root]) for root in run]
                size = aligned(sum(sizes)) if value in held else self.bytes(types[value])
                found.append(run)
                items.append(Item(start, stop, size))
        return found, items

    def adjoin(self, values: Sequence[int], others: Sequence[int]) -> bool:
        """Whether values lie one behind another in the frame, and others in the same place."""
        roots = tuple(map(self.classes.find, values))
        same = roots == tuple(map(self.classes.find, others))
        return same and any(
            run[at : at + len(roots)] == roots for run in self.runs for at in range(len(run))
        )

    def offsets_of(self, held: Sequence[tuple[int, ...]], starts: Sequence[int]) -> dict[int, int]:
        """The offset of each class, of those that adjoin one behind another."""
        found: dict[int, int] = {}
        for run, start in zip(held, starts, strict=False):
            for root in run:
                found[root] = start
                start += self.sizes.local_bytes(self.function.types[root])
        return found

    def scratch(self, op: Op, at: int) -> list[Item]:
        """What an op needs for its own run: its callees' frames first, then scratch buffers.

        What is started needs them until it is waited for.
        """
        items: list[Item] = []
        end = self.classes.until.get(at, at)
        names = (getattr(op.attrs, "function", ""), getattr(op.attrs, "final", ""))
        if names[0]:
            most = max(self.frames[name].bytes for name in names if name)
            items.append(Item(at, at, aligned(most)))
        if isinstance(op.attrs, Scan):
            beside = filter(None, (op.attrs.ahead, op.attrs.behind))
            items += [Item(at, at, aligned(self.frames[name].bytes)) for name in beside]
        if isinstance(op.attrs, Pipeline):
            items += self.pipeline_scratch(op, op.attrs, at)
        if isinstance(op.attrs, Scan):
            items += [Item(at, at, self.bytes(kind)) for kind in self.scan_scratch(op)]
        if isinstance(op.attrs, AllGather | ReduceScatter):
            source, result = (self.function.types[v] for v in (op.operands[0], op.results[0]))
            if isinstance(op.attrs, ReduceScatter):
                last = self.alone(op.operands[0], op) and self.dies(op.operands[0], op, at)
                if not (last and in_one_piece(op, source)):
                    items.append(Item(at, end, self.bytes(source)))
            elif not in_one_piece(op, source):
                items.append(Item(at, end, self.bytes(result)))
        if isinstance(op.attrs, Coalesced):
            size = packed_bytes(op, self.function, self.sizes, self.adjoin)
            items += [Item(at, end, aligned(size))] if size else []
        if isinstance(op.attrs, AllToAll):  # what is sent, and what is received
            items.append(Item(at, end, 2 * self.bytes(self.function.types[op.operands[0]])))
        if isinstance(op.attrs, ExchangeRows):  # likewise, with room for all that may be
            both = (self.function.types[value] for value in (op.operands[0], op.results[0]))
            elements = sum(self.sizes.local_elements(kind) for kind in both)
            dtype = self.function.types[op.operands[0]].dtype
            items.append(Item(at, at, aligned(elements * DTYPE_BYTES[dtype])))
        if isinstance(op.attrs, RingAttend):
            items += [Item(at, at, aligned(size)) for size in ring_buffers(op, self)]
        if isinstance(op.attrs, ReduceSum) and self.rows:
            kind = self.function.types[op.results[0]]
            if kind.names[: len(self.rows)] != self.rows:
                items.append(Item(at, at, self.bytes(kind)))
        return items

    def pipeline_scratch(self, op: Op, attrs: Pipeline, at: int) -> list[Item]:
        """The frame that the functions of all turns share, then the buffers of what passes."""
        frames = [self.frames[name].bytes for _, name in attrs.functions]
        slices = op.operands[attrs.carries : attrs.carries + attrs.slices]
        kinds = [self.function.types[value] for value in slices]
        found = [Item(at, at, aligned(max(frames, default=0)))]
        for buffers in Turns(self.program, attrs).buffers(self.frames, kinds):
            found.append(Item(at, at, buffers.slots * self.bytes(buffers.type)))
        return found

    def scan_scratch(self, op: Op) -> list[Type]:
        """Second buffers of carries that the body doesn't update in place, then staged slices.

        Of what passes between a turn and what runs beside the next there are two buffers.
        """
        assert isinstance(op.attrs, Scan)
        body = self.program.function(op.attrs.function)
        frame = self.frames[op.attrs.function]
        second = [
            body.types[body.results[k]]
            for k in range(op.attrs.carries)
            if not updated_carry(body, frame, k)
        ]
        if not staged(op.attrs):
            return second + [kind for kind in passing(self.program, op.attrs) for _ in range(2)]
        stop = op.attrs.carries + op.attrs.slices
        return second + [body.types[k] for k in range(op.attrs.carries, stop)]

    def plan(self) -> Frame:
        """The frame."""
        self.join_donated()
        self.join_dying()
        held, items = self.own_items()
        extras = [self.scratch(op, at) for at, op in enumerate(self.function.ops)]
        every = [*items, *(item for group in extras for item in group)]
        starts, total = offsets(every)
        places = self.places(self.offsets_of(held, starts))
        rest = iter(starts[len(items) :])
        ops: list[OpPlace] = []
        for op, group in zip(self.function.ops, extras, strict=True):
            numbers = [next(rest) for _ in group]
            calls = bool(getattr(op.attrs, "function", "")) or isinstance(op.attrs, Pipeline)
            ops.append(
                OpPlace(numbers[0] if calls else 0, tuple(numbers[1:] if calls else numbers))
            )
        return Frame(self.function.name, total, live_bytes(every), places, tuple(ops), self.tile)


def passing(program: Program, attrs: Scan) -> list[Type]:
    """Types of what a turn takes from what ran ahead, then of what it hands on."""
    body = program.function(attrs.function)
    made = program.function(attrs.ahead).signature.results if attrs.ahead else ()
    handed = body.results[len(body.results) - attrs.handed :]
    return [*made, *(body.types[value] for value in handed)]


def ring_buffers(op: Op, planner: Planner) -> list[int]:
    """Bytes of the blocks that a ring of attention hands round: keys and values, two of each.

    A backward ring has also three pairs of gradients, in the dtype in which they are summed.
    """
    pair = [planner.function.types[value] for value in op.operands[1:3]]
    blocks = 2 * sum(planner.sizes.local_bytes(kind) for kind in pair)
    if not isinstance(op.attrs, RingAttendGrad):
        return [blocks]
    return [blocks, 3 * sum(planner.sizes.local_elements(k) * sum_bytes(k) for k in pair)]


def sum_bytes(kind: Type) -> int:
    """Bytes of an element of a sum over parts of attention."""
    return max(DTYPE_BYTES[kind.dtype], DTYPE_BYTES["f32"])


def plan_frames(
    program: Program, known: Sequence[tuple[Program, Mapping[str, Frame]]] = ()
) -> dict[str, Frame]:
    """The frames of all functions that the entries reach, callees first.

    What other programs have alike in function, callees and sizes is taken from what is `known`.
    """
    frames: dict[str, Frame] = {}
    rows: dict[str, tuple[str, ...]] = {}
    donated: dict[str, dict[int, tuple[int, ...]]] = {}

    def visit_others(op: Op, attrs: Scan) -> None:
        if attrs.behind:
            donated[attrs.behind] = behind_donations(program.function(attrs.behind), attrs)
        for other in filter(None, (attrs.ahead, attrs.behind)):
            if other not in frames:
                visit(other)
        if attrs.final and attrs.final not in frames:
            donated[attrs.final] = same_donations(program, frames, op)
            visit(attrs.final)

    def visit(name: str) -> None:
        function = program.function(name)
        for op in function.ops:
            if isinstance(op.attrs, Pipeline):
                for _, callee in op.attrs.functions:
                    donated[callee] = entry_donations(program.function(callee))
                    visit(callee)
            callee = getattr(op.attrs, "function", "")
            if callee and callee not in frames:
                if isinstance(op.attrs, Bucketed | Fused):
                    rows[callee] = rows_of(op)
                if isinstance(op.attrs, Scan):
                    donated[callee] = scan_donations(program.function(callee), op.attrs)
                visit(callee)
            if isinstance(op.attrs, Scan):
                visit_others(op, op.attrs)
        for other, theirs in known:
            if same_function(program, other, name, frames, theirs):
                frames[name] = theirs[name]
                return
        given = donated.get(name, {})
        frames[name] = Planner(function, program, frames, given, rows.get(name, ())).plan()

    for entry in program.entries:
        donated[entry] = entry_donations(program.function(entry))
        visit(entry)
    return frames


def same_function(
    program: Program,
    other: Program,
    name: str,
    frames: Mapping[str, Frame],
    theirs: Mapping[str, Frame],
) -> bool:
    """Whether a function of another program needs the very same frame."""
    if name not in theirs or program.mesh != other.mesh:
        return False
    function = program.function(name)
    if function != other.function(name) or (name in program.entries) != (name in other.entries):
        return False
    dims = {dim.name for kind in function.types for dim in kind.dims}
    sizes, their_sizes = program.sizes, other.sizes
    if any(sizes.size(dim) != their_sizes.size(dim) for dim in dims):
        return False
    return all(frames[callee] == theirs.get(callee) for callee in callees(function))


def persistent(sizes: Sizes, groups: Sequence[Sequence[Type]], start: int) -> tuple[list[int], int]:
    """Offsets of tensors from `start` on, and the end; those of a group adjoin."""
    found: list[int] = []
    for kinds in groups:
        for kind in kinds:
            found.append(start)
            start += sizes.local_bytes(kind)
        start = aligned(start)
    return found, start
