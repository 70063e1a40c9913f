"""A brute-force check of a plan's memory that shares nothing with the planner.

For each function it replays the ops over the bytes of its frame, of its inputs and of its results:
a write marks the bytes with the value, a read finds them still marked so. What is in flight is
touched by nothing until it is waited for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from fllmc.ir import ops
from fllmc.ir.plan import ALIGNMENT, Frame, Plan
from fllmc.ir.program import Function, Op
from fllmc.ir.types import DTYPE_BYTES, Type
from fllmc.ir.walk import waits

Stretch = tuple[str, int, int]
"""Bytes of a region: `frame`, or `argument 3`, or `result 0`."""


def overlap(a: Stretch, b: Stretch) -> bool:
    return a[0] == b[0] and a[1] < b[2] and b[1] < a[2]


def faults(plan: Plan) -> list[str]:
    """What is wrong with the memory of any function of the plan."""
    found: list[str] = []
    tiled = {
        op.attrs.function: rows
        for function in plan.program.functions
        for op in function.ops
        if isinstance(op.attrs, ops.Fused | ops.Bucketed)
        for rows in [getattr(op.attrs, "rows", None) or (getattr(op.attrs, "bucket", ""),)]
    }
    for frame in plan.frames:
        function = plan.program.function(frame.function)
        found += Replay(plan, function, frame, tiled.get(function.name, ())).faults()
    stored = sorted((s.offset, s.offset + s.bytes, s.name) for s in plan.stored)
    for (_, stop, name), (start, _, after) in pairwise(stored):
        found += [f"{name} and {after} overlap"] if start < stop else []
    if stored and stored[-1][1] > plan.frame_base:
        found.append("stored tensors reach into the frames")
    return found


class Replay:
    """One function, with every input and result in a region of its own unless placed together."""

    def __init__(self, plan: Plan, function: Function, frame: Frame, rows: tuple[str, ...]) -> None:
        self.plan, self.function, self.frame, self.rows = plan, function, frame, rows
        self.sizes = plan.program.sizes
        self.held: list[tuple[Stretch, int]] = []
        self.source: dict[int, int] = {}
        self.waits = waits(function)
        self.flying: dict[int, list[Stretch]] = {}

    def size(self, kind: Type) -> int:
        if self.rows and kind.names[: len(self.rows)] == self.rows:
            inner = self.sizes.local_elements(kind.without(self.rows))
            return self.frame.tile_rows * inner * DTYPE_BYTES[kind.dtype]
        return self.sizes.local_bytes(kind)

    def stretch(self, value: int) -> Stretch | None:
        place, kind = self.frame.places[value], self.function.types[value]
        match place.kind:
            case "host" | "none":
                return None
            case "frame":
                return "frame", place.number, place.number + self.size(kind)
            case _:
                return f"{place.kind} {place.number}", 0, self.size(kind)

    def write(self, value: int) -> None:
        mine = self.stretch(value)
        if mine is not None:
            self.held = [(s, v) for s, v in self.held if not overlap(s, mine)]
            self.held.append((mine, value))

    def read(self, value: int, reader: str) -> Iterator[str]:
        mine, maker = self.stretch(value), self.source.get(value, value)
        if mine is not None and (mine, maker) not in self.held:
            yield f"{self.function.name}: {reader} reads %{value}, which is overwritten"

    def spaces(self, op: Op, at: int) -> list[Stretch]:
        """The callee's frame and the scratch buffers of an op."""
        given, found = self.frame.ops[at], list[Stretch]()
        callee = getattr(op.attrs, "function", "")
        if callee:
            size = self.plan.frame(callee).bytes
            found.append(("frame", given.frame, given.frame + size))
        kinds = [self.function.types[v] for v in (*op.operands, *op.results)]
        # The smallest that a scratch buffer can be is an element.
        least = min((DTYPE_BYTES[kind.dtype] for kind in kinds), default=1)
        sizes = [least] * len(given.scratch)
        if isinstance(op.attrs, ops.Scan):
            sides = [name for name in (op.attrs.ahead, op.attrs.behind) if name]
            sizes[: len(sides)] = [self.plan.frame(name).bytes for name in sides]
            passing = self.passing(op.attrs)
            sizes[len(sizes) - len(passing) :] = passing
        pairs = zip(given.scratch, sizes, strict=True)
        return found + [("frame", start, start + size) for start, size in pairs if size]

    def passing(self, attrs: ops.Scan) -> list[int]:
        """Bytes of both buffers of what passes between a turn and what runs beside the next."""
        body = self.plan.program.function(attrs.function)
        made = self.plan.program.function(attrs.ahead).signature.results if attrs.ahead else ()
        handed = body.signature.results[len(body.results) - attrs.handed :]
        return [self.sizes.local_bytes(kind) for kind in (*made, *handed) for _ in range(2)]

    def run_op(self, op: Op, at: int) -> Iterator[str]:
        where = f"op {at} ({op.kind})"
        for value in op.operands:
            yield from self.read(value, where)
        if isinstance(op.attrs, ops.Rename | ops.Stop | ops.Wait):
            for old, new in zip(op.operands, op.results, strict=True):
                self.source[new] = self.source.get(old, old)
            self.flying.pop(self.waits.get(at, -1), None)
            return
        yield from self.hazards(op, where)
        spaces = self.spaces(op, at)
        touched = [s for v in (*op.operands, *op.results) if (s := self.stretch(v))]
        written = [*spaces, *(s for v in op.results if (s := self.stretch(v)))]
        for start, held in self.flying.items():
            if any(overlap(a, b) for a in held for b in written):
                yield f"{self.function.name}: {where}: writes to what op {start} has in flight"
        if at in self.waits.values():
            self.flying[at] = [*spaces, *touched]
        for number, space in enumerate(spaces):
            if any(overlap(space, other) for other in (*touched, *spaces[number + 1 :])):
                yield f"{self.function.name}: {where}: scratch {space} overlaps"
            self.held = [(s, v) for s, v in self.held if not overlap(s, space)]
        for value in op.results:
            self.write(value)

    def hazards(self, op: Op, where: str) -> Iterator[str]:
        """Results on the bytes of operands that the op has not read by then."""
        outs = [s for v in op.results if (s := self.stretch(v))]
        if any(overlap(a, b) for n, a in enumerate(outs) for b in outs[n + 1 :]):
            yield f"{self.function.name}: {where}: results overlap"
        if isinstance(op.attrs, ops.Scan | ops.Fused | ops.Bucketed | ops.Coalesced):
            return  # judged in the body, and by running; or read into scratch first
        late = op.operands
        if isinstance(op.attrs, ops.AddN | ops.DotAdd | ops.PutAdd | ops.AllReduce):
            late = op.operands[1:]
        for value in late:
            mine = self.stretch(value)
            if mine is None or not any(overlap(mine, out) for out in outs):
                continue
            pointwise = isinstance(op.attrs, ops.Elementwise) and not isinstance(op.attrs, ops.AddN)
            same = self.function.types[value].names == self.function.types[op.results[0]].names
            if not (pointwise and same and mine in outs):
                yield f"{self.function.name}: {where}: written over %{value} while it is read"

    def behind(self) -> set[int]:
        """Values that lie behind another in a bucket, or in the storage of one that does."""
        lists: list[Sequence[int]] = []
        for op in self.function.ops:
            if isinstance(op.attrs, ops.Bucketed):
                lists += op.attrs.listed(op.operands)
            if isinstance(op.attrs, ops.Coalesced):
                lists += [op.operands, op.results]
        starts = [self.stretch(value) for values in lists for value in values[1:]]
        return {v for v in range(len(self.function.types)) if self.stretch(v) in starts}

    def faults(self) -> Iterator[str]:
        name = self.function.name
        for number in range(len(self.function.inputs)):
            self.write(number)
        for at, op in enumerate(self.function.ops):
            yield from self.run_op(op, at)
        for value in self.function.results:
            yield from self.read(value, "the end")
        behind = self.behind()
        if self.flying:
            yield f"{name}: {sorted(self.flying)} are in flight at the end"
        for value in range(len(self.function.types)):
            mine = self.stretch(value)
            least = DTYPE_BYTES[self.function.types[value].dtype] if value in behind else ALIGNMENT
            if mine and mine[0] == "frame" and (mine[1] % least or mine[2] > self.frame.bytes):
                yield f"{name}: %{value} at {mine} in a frame of {self.frame.bytes}"
        if self.frame.bytes < self.frame.live_bytes:
            yield f"{name}: {self.frame.bytes} bytes for {self.frame.live_bytes} alive"
