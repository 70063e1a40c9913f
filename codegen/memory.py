"""Memory: values of a function to places, lifetimes to offsets.

Values that share storage form a class: renamed values, and results that an op may write over an
operand that dies there. A class lives in an input's buffer (in place), in a buffer that the caller
gives for a result, or in the function's own frame. Frames are planned callees first; a callee's
frame is one more item of its caller's, live during the call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fllmc.codegen.offsets import Item, aligned, live_bytes, offsets
from fllmc.codegen.storage_classes import Classes
from fllmc.codegen.tiles import tile_rows
from fllmc.ir.ops import (
    AddN,
    AllGather,
    AllReduce,
    DotAdd,
    Elementwise,
    Fused,
    PutAdd,
    ReduceScatter,
    ReduceSum,
    Rename,
    Scan,
    Stop,
)
from fllmc.ir.plan import Frame, OpPlace, Place
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import DTYPE_BYTES, Sizes, Type
from fllmc.ir.walk import host_values


class Planner:
    """Plans the frame of one function, given those of its callees."""

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
        self.in_place: dict[int, int] = {}

    def bytes(self, kind: Type) -> int:
        """Bytes of a value; of one tile of it inside a fused group."""
        if self.rows and kind.names[: len(self.rows)] == self.rows:
            inner = self.sizes.local_elements(kind.without(self.rows))
            return aligned(self.tile * inner * DTYPE_BYTES[kind.dtype])
        return aligned(self.sizes.local_bytes(kind))

    def reusable(self, op: Op, result: int) -> list[int]:
        """Operands whose storage the op may write its `result`-th result over."""
        value = op.results[result]
        kind = self.function.types[value]
        match op.attrs:
            case AddN() | DotAdd() | PutAdd() | AllReduce():
                found = [op.operands[0]]
            case Elementwise():
                found = list(op.operands)
            case Fused(function=name):
                found = self.fused_reusable(op, name, result)
            case Scan(carries=carries):
                found = (
                    [op.operands[result]] if result < carries else self.scan_reusable(op, result)
                )
            case _:
                found = []
        good = [v for v in found if self.layout(v) == layout(kind) and v not in self.host]
        if isinstance(op.attrs, Elementwise) and not isinstance(op.attrs, AddN):
            return good
        return [v for v in good if isinstance(op.attrs, Fused) or self.alone(v, op)]

    def alone(self, value: int, op: Op) -> bool:
        """Whether no other operand of the op has the storage of this one."""
        mine = self.classes.find(value)
        return sum(self.classes.find(other) == mine for other in op.operands) == 1

    def layout(self, value: int) -> tuple[str, tuple[str, ...]]:
        """What must agree for two values to share storage."""
        return layout(self.function.types[value])

    def fused_reusable(self, op: Op, name: str, result: int) -> list[int]:
        """Operands that the group has read before it first writes that result, tile by tile."""
        body = self.program.function(name)
        frame = self.frames[name]
        classes = Classes(body)
        rows = op.attrs.rows if isinstance(op.attrs, Fused) else ()
        target = Place("result", result)
        written = [classes.first[v] for v, place in enumerate(frame.places) if place == target]
        first = min(written, default=len(body.ops))
        kind = body.types[body.results[result]]
        if kind.names[: len(rows)] != rows:
            return []
        last: dict[int, int] = {}
        for number, value in enumerate(op.operands):
            root = self.classes.find(value)
            last[root] = max(last.get(root, -1), classes.last[number])
        return [v for v in op.operands if last[self.classes.find(v)] <= first]

    def scan_reusable(self, op: Op, result: int) -> list[int]:
        """The slice operand that the body updates in place to make a stacked result."""
        if not isinstance(op.attrs, Scan):
            return []
        frame = self.frames[op.attrs.function]
        body = self.program.function(op.attrs.function)
        given = updated_input(body, frame, op.attrs, result)
        return [] if given is None else [op.operands[given]]

    def chain(self, result: int, given: int) -> list[int]:
        """Values from input `given` to `result`, each written over the one before; empty if none."""
        producer = {v: (at, op) for at, op in enumerate(self.function.ops) for v in op.results}

        def back(value: int, path: list[int]) -> list[int]:
            if value == given:
                return path
            if value not in producer or len(path) > len(self.function.ops):
                return []
            at, op = producer[value]
            alias = isinstance(op.attrs, Rename | Stop)
            before = op.operands[:1] if alias else self.reusable(op, op.results.index(value))
            for operand in before:
                if self.classes.last[operand] == at and operand not in self.function.results:
                    found = back(operand, [operand, *path])
                    if found:
                        return found
            return []

        return back(result, [result]) if self.classes.last[given] >= 0 else []

    def join_donated(self) -> None:
        """Update inputs in place where a chain of overwriting ops leads from input to result."""
        for result, candidates in sorted(self.donated.items()):
            value = self.function.results[result]
            if self.function.results.count(value) > 1:
                continue
            for given in candidates:
                path = [] if given in self.in_place.values() else self.chain(value, given)
                if path:
                    for later in path[1:]:
                        self.classes.join(given, later)
                    self.in_place[result] = given
                    break

    def join_dying(self) -> None:
        """Let results overwrite operands that die, and aliases share storage."""
        taken: dict[int, int] = {}
        for result, value in enumerate(self.function.results):
            taken.setdefault(self.classes.find(value), result)
        for at, op in enumerate(self.function.ops):
            if isinstance(op.attrs, Rename | Stop):
                self.merge(op.operands[0], op.results[0], taken)
                continue
            for result, value in enumerate(op.results):
                if any(self.classes.find(v) == self.classes.find(value) for v in op.operands):
                    continue  # written over an operand already
                if self.rows and self.classes.find(value) in taken:
                    continue  # written last of all, so that the caller may reuse an operand for it
                for operand in self.reusable(op, result):
                    old = self.classes.find(operand)
                    fixed = any(self.classes.find(i) == old for i in range(self.inputs))
                    if self.classes.last[old] == at and not fixed and self.free(old, op, result):
                        if self.merge(operand, value, taken):
                            break

    def free(self, old: int, op: Op, result: int) -> bool:
        """Whether no other result of the op shares the class already."""
        others = [v for k, v in enumerate(op.results) if k != result]
        return all(self.classes.find(v) != old for v in others)

    def merge(self, old: int, new: int, taken: dict[int, int]) -> bool:
        """Join two values unless both are bound to different results of the function."""
        a, b = self.classes.find(old), self.classes.find(new)
        if a == b:
            return True
        alias_of_input = any(self.classes.find(i) == a for i in range(self.inputs))
        if b in taken and (a in taken or alias_of_input) and not self.rename_of(new):
            return False
        bound = taken.get(a, taken.get(b))
        self.classes.join(old, new)
        if bound is not None:
            taken[self.classes.find(old)] = bound
        return True

    def rename_of(self, value: int) -> bool:
        """Whether the value is made by an op that has no storage of its own."""
        makers = [op for op in self.function.ops if value in op.results]
        return bool(makers) and isinstance(makers[0].attrs, Rename | Stop)

    def places(self, frame_offset: Mapping[int, int]) -> tuple[Place, ...]:
        """The place of every value, given the frame offset of each class that has one."""
        root_input = {self.classes.find(i): i for i in reversed(range(self.inputs))}
        root_result: dict[int, int] = {}
        for result, value in reversed(list(enumerate(self.function.results))):
            root_result[self.classes.find(value)] = result
        found: list[Place] = []
        for value in range(len(self.function.types)):
            root = self.classes.find(value)
            if value in self.host:
                found.append(Place("host", value))
            elif root in root_input:
                found.append(Place("argument", root_input[root]))
            elif root in frame_offset:
                found.append(Place("frame", frame_offset[root]))
            elif root in root_result:
                found.append(Place("result", root_result[root]))
            else:
                found.append(Place("none"))
        return tuple(found)

    def own_items(self) -> tuple[list[int], list[Item]]:
        """The classes that live in the frame, with their lifetimes."""
        outside = {self.classes.find(i) for i in range(self.inputs)}
        bound = {self.classes.find(value) for value in self.function.results}
        roots: list[int] = []
        items: list[Item] = []
        for value in range(self.inputs, len(self.function.types)):
            root = self.classes.find(value)
            if root != value or root in outside or root in bound or value in self.host:
                continue
            roots.append(root)
            start, stop = self.classes.first[root], self.classes.last[root]
            items.append(Item(start, stop, self.bytes(self.function.types[root])))
        return roots, items

    def scratch(self, op: Op, at: int) -> list[Item]:
        """What an op needs for its own run: its callee's frame first, then scratch buffers."""
        items: list[Item] = []
        name = getattr(op.attrs, "function", "")
        if name:
            items.append(Item(at, at, aligned(self.frames[name].bytes)))
        if isinstance(op.attrs, Scan):
            items += [Item(at, at, self.bytes(kind)) for kind in self.scan_scratch(op)]
        if isinstance(op.attrs, AllGather | ReduceScatter):
            source, result = (self.function.types[v] for v in (op.operands[0], op.results[0]))
            if isinstance(op.attrs, ReduceScatter):  # the library may sum in place
                items.append(Item(at, at, self.bytes(source)))
            elif source.names[0] != op.attrs.dim:
                items.append(Item(at, at, self.bytes(result)))
        if isinstance(op.attrs, ReduceSum) and self.rows:
            kind = self.function.types[op.results[0]]
            if kind.names[: len(self.rows)] != self.rows:
                items.append(Item(at, at, self.bytes(kind)))
        return items

    def scan_scratch(self, op: Op) -> list[Type]:
        """Second buffers of carries that the body doesn't update in place, then staged slices."""
        assert isinstance(op.attrs, Scan)
        body = self.program.function(op.attrs.function)
        frame = self.frames[op.attrs.function]
        second = [
            body.types[body.results[k]]
            for k in range(op.attrs.carries)
            if updated_input(body, frame, op.attrs, k) is None
        ]
        if not staged(op.attrs):
            return second
        stop = op.attrs.carries + op.attrs.slices
        return second + [body.types[k] for k in range(op.attrs.carries, stop)]

    def plan(self) -> Frame:
        """The frame."""
        self.join_donated()
        self.join_dying()
        roots, items = self.own_items()
        extras = [self.scratch(op, at) for at, op in enumerate(self.function.ops)]
        every = [*items, *(item for group in extras for item in group)]
        starts, total = offsets(every)
        places = self.places(dict(zip(roots, starts, strict=False)))
        rest = iter(starts[len(items) :])
        ops: list[OpPlace] = []
        for op, group in zip(self.function.ops, extras, strict=True):
            numbers = [next(rest) for _ in group]
            calls = bool(getattr(op.attrs, "function", ""))
            ops.append(
                OpPlace(numbers[0] if calls else 0, tuple(numbers[1:] if calls else numbers))
            )
        return Frame(self.function.name, total, live_bytes(every), places, tuple(ops), self.tile)


def layout(kind: Type) -> tuple[str, tuple[str, ...]]:
    """Dtype and placed dims in order: what two values must share to share storage."""
    return kind.dtype, tuple(str(dim) for dim in kind.dims)


def updated_input(body: Function, frame: Frame, attrs: Scan, result: int) -> int | None:
    """The carry or slice of a scan body that this result is written over, if any."""
    value = body.results[result]
    place = frame.places[value]
    if place.kind != "argument":
        return None
    if result < attrs.carries:
        return result if place.number == result else None
    slices = range(attrs.carries, attrs.carries + attrs.slices)
    return place.number if place.number in slices and value >= len(body.inputs) else None


def staged(attrs: Scan) -> bool:
    """Whether a scan copies its slices to a fixed place instead of being bound for each position.

    Micro-batches do: their slices are small (token numbers), their number is not.
    """
    return attrs.over == "microbatches"


def plan_frames(program: Program) -> dict[str, Frame]:
    """The frames of all functions that the entries reach, callees first."""
    frames: dict[str, Frame] = {}
    rows: dict[str, tuple[str, ...]] = {}
    donated: dict[str, dict[int, tuple[int, ...]]] = {}

    def visit(name: str) -> None:
        function = program.function(name)
        for op in function.ops:
            callee = getattr(op.attrs, "function", "")
            if callee and callee not in frames:
                if isinstance(op.attrs, Fused):
                    rows[callee] = op.attrs.rows
                if isinstance(op.attrs, Scan):
                    donated[callee] = scan_donations(program.function(callee), op.attrs)
                visit(callee)
        given = donated.get(name, {})
        frames[name] = Planner(function, program, frames, given, rows.get(name, ())).plan()

    for entry in program.entries:
        donated[entry] = entry_donations(program.function(entry))
        visit(entry)
    return frames


def entry_donations(function: Function) -> dict[int, tuple[int, ...]]:
    """Results of an entry that replace the input of the same name."""
    names = {given.name: number for number, given in enumerate(function.inputs)}
    return {r: (names[name],) for r, name in enumerate(function.outputs) if name in names}


def scan_donations(body: Function, attrs: Scan) -> dict[int, tuple[int, ...]]:
    """Carries, and for stacked results the slices of the same layout, which they may update."""
    found = {carry: (carry,) for carry in range(attrs.carries)}
    slices = range(attrs.carries, attrs.carries + attrs.slices)
    for result in range(attrs.carries, len(body.results)):
        wanted = layout(body.types[body.results[result]])
        found[result] = tuple(k for k in slices if layout(body.types[k]) == wanted)
    return found


def persistent(sizes: Sizes, kinds: Sequence[Type], start: int) -> tuple[list[int], int]:
    """Offsets of tensors laid one after another from `start`, and the end."""
    found: list[int] = []
    for kind in kinds:
        found.append(start)
        start += aligned(sizes.local_bytes(kind))
    return found, start
