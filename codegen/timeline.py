"""What a rank's memory holds from op to op of an entry, by category.

The frames of the plan are walked in the order in which the generated code runs; the body of a scan
is walked once, since each of its runs looks alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from fllmc.codegen.memory import Planner, aligned
from fllmc.codegen.offsets import Item
from fllmc.ir.ops import (
    AllGather,
    Call,
    Cast,
    Coalesced,
    LocalSlice,
    Rename,
    Scan,
    Share,
    Stop,
    Wait,
)
from fllmc.ir.plan import Plan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.walk import waits

CATEGORIES: tuple[str, ...] = (
    "parameters",
    "optimizer state",
    "data",
    "parameter copies",
    "saved activations",
    "gradients",
    "transients",
)
PERSISTENT: Mapping[str, str] = {
    "param": "parameters",
    "state": "optimizer state",
    "data": "data",
    "output": "data",
}
COPIES = (AllGather, Cast, Coalesced, LocalSlice, Rename, Share, Stop, Wait)
"""Ops whose result, given a parameter, is that parameter in another form."""


class Moment(msgspec.Struct, frozen=True):
    """One op's run: bytes alive during it, as `CATEGORIES` are ordered."""

    function: str
    kind: str
    path: str
    bytes: tuple[int, ...]

    @property
    def total(self) -> int:
        """All bytes alive."""
        return sum(self.bytes)


class Stretch(msgspec.Struct, frozen=True):
    """The moments from `start` to before `stop` are a function's, which runs `times` times."""

    start: int
    stop: int
    label: str
    times: int
    depth: int


class Timeline(msgspec.Struct, frozen=True):
    """An entry's moments, and the functions that they belong to."""

    moments: tuple[Moment, ...]
    stretches: tuple[Stretch, ...]

    @property
    def peak(self) -> Moment:
        """The moment with most bytes alive, the first of such."""
        return max(self.moments, key=lambda moment: moment.total)


def timeline(plan: Plan, entry: str) -> Timeline:
    """The memory of one call of an entry."""
    walk = _Walk(plan, entry)
    base = dict.fromkeys(CATEGORIES, 0)
    for stored in plan.stored:
        base[PERSISTENT[stored.role]] += aligned(stored.bytes)
    walk.run(entry, base, 0)
    return Timeline(tuple(walk.moments), tuple(walk.stretches))


class _Walk:
    """Collects moments in order."""

    def __init__(self, plan: Plan, entry: str) -> None:
        self.plan = plan
        self.program = plan.program
        self.frames = {frame.function: frame for frame in plan.frames}
        self.kinds = value_kinds(plan, entry)
        self.moments: list[Moment] = []
        self.stretches: list[Stretch] = []

    def run(self, name: str, base: Mapping[str, int], depth: int) -> None:
        """The moments of one run of a function, on top of what its callers hold."""
        function = self.program.function(name)
        planner = Planner(function, self.program, self.frames, {})
        last = last_uses(function)
        alive: dict[int, int] = {}
        scratch: list[Item] = []
        for at, op in enumerate(function.ops):
            alive |= dict.fromkeys(op.results, 0)
            now = self.now(name, list(alive), base)
            scratch = [item for item in scratch if item.stop >= at] + planner.scratch(op, at)
            now["transients"] += sum(item.bytes for item in scratch)
            if not all(value in planner.host for value in op.results):
                self.step(name, op, now, depth)
            alive = {value: 0 for value in alive if last[value] > at}

    def step(self, name: str, op: Op, now: dict[str, int], depth: int) -> None:
        """One op: a moment, or the moments of what it runs."""
        callee = getattr(op.attrs, "function", "")
        if callee and isinstance(op.attrs, Scan | Call):
            final = getattr(op.attrs, "final", "")  # it holds no more than the other turns do
            most = max(self.frames[name].bytes for name in (callee, final) if name)
            now["transients"] -= aligned(most)
            start = len(self.moments)
            self.run(callee, now, depth + 1)
            times = self.program.sizes.size(op.attrs.over) if isinstance(op.attrs, Scan) else 1
            self.stretches.append(Stretch(start, len(self.moments), callee, times, depth))
        else:
            held = tuple(now[category] for category in CATEGORIES)
            self.moments.append(Moment(name, op.kind, op.path, held))

    def now(self, name: str, alive: Sequence[int], base: Mapping[str, int]) -> dict[str, int]:
        """Bytes by category while these values of a function are alive.

        Values at one offset share storage; the storage counts for the foremost category among them.
        """
        function, frame = self.program.function(name), self.frames[name]
        held: dict[int, tuple[int, int]] = {}
        for value in alive:
            place = frame.places[value]
            if place.kind == "frame":
                size = aligned(self.program.sizes.local_bytes(function.types[value]))
                rank = CATEGORIES.index(self.kinds[name][value])
                old_size, old_rank = held.get(place.number, (0, rank))
                held[place.number] = max(size, old_size), min(rank, old_rank)
        found = dict(base)
        for size, rank in held.values():
            found[CATEGORIES[rank]] += size
        return found


def last_uses(function: Function) -> list[int]:
    """For each value the last op that uses it; results are used behind the end.

    What a started op takes is in use until that is waited for.
    """
    last = [-1] * len(function.types)
    for at, op in enumerate(function.ops):
        for value in (*op.results, *op.operands):
            last[value] = at
    for end, start in waits(function).items():
        for value in function.ops[start].operands:
            last[value] = max(last[value], end)
    for value in function.results:
        last[value] = len(function.ops)
    return last


def value_kinds(plan: Plan, entry: str) -> dict[str, list[str]]:
    """The category of every value of the functions that an entry runs.

    A copy of a parameter is what follows from one without arithmetic. Any other value with a
    trained parameter's dims is a gradient. What a forward scan stacks is kept for the backward one.
    """
    shapes = set(_parameter_dims(plan))
    found: dict[str, list[str]] = {}

    def visit(name: str, given: Sequence[str]) -> None:
        if name in found:
            return
        function = plan.program.function(name)
        kinds = [*given, *("transients" for _ in function.types[len(given) :])]
        found[name] = kinds
        back = {
            op.attrs.over for op in function.ops if isinstance(op.attrs, Scan) and op.attrs.reverse
        }
        for op in function.ops:
            before = [kinds[value] for value in op.operands]
            stacked = op.attrs.carries if isinstance(op.attrs, Scan) else 0
            saves = isinstance(op.attrs, Scan) and not op.attrs.reverse and op.attrs.over in back
            for place, value in enumerate(op.results):
                kind = function.types[value]
                source = before[place] if isinstance(op.attrs, COPIES) else ""
                if source.startswith("parameter"):
                    kinds[value] = "parameter copies"
                elif kind.is_float and frozenset(kind.names) in shapes:
                    kinds[value] = "gradients"
                elif saves and place >= stacked:
                    kinds[value] = "saved activations"
            if isinstance(op.attrs, Scan):
                for name, inside in kinds_inside(plan.program, op, before):
                    visit(name, inside)
            elif callee := getattr(op.attrs, "function", ""):
                visit(callee, before)

    roles = {"param": "parameters", "state": "optimizer state"}
    visit(entry, [roles.get(i.role, "data") for i in plan.program.function(entry).inputs])
    return found


def kinds_inside(
    program: Program, op: Op, before: Sequence[str]
) -> Iterator[tuple[str, Sequence[str]]]:
    """The functions of a scan's turns, each with the categories of its inputs."""
    assert isinstance(op.attrs, Scan)
    attrs = op.attrs
    given = {
        name: ["transients"] * len(program.function(name).inputs)
        for name in attrs.functions
        if name != attrs.final
    }
    for operand, kind in enumerate(before):
        name, number = attrs.taker(operand)
        given[name][number] = kind
    if attrs.ahead:
        made = len(program.function(attrs.ahead).results)
        body = given[attrs.function]
        body[len(body) - made :] = ["parameter copies"] * made
    yield from given.items()
    if attrs.final:
        yield attrs.final, before


def _parameter_dims(plan: Plan) -> Iterator[frozenset[str]]:
    """The dims of each trained parameter, whole and for one position of its stack."""
    for parameter in plan.program.parameters:
        if parameter.trainable and parameter.type.dims:
            names = frozenset(parameter.type.names)
            yield names
            if parameter.stack:
                yield names - {parameter.stack}
