"""Which transfers of a function run beside its other ops, from where to where.

A transfer is started earlier and waited for later, within what its operands and the users of its
results allow, until the ops between take as long as it does. The order of all else stays. Since
all ranks that meet in a collective run the same function, they start them in the same order; what
stages of a pipeline exchange, each in a function of its own, stays where it is, and nothing is
moved across it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fllmc.ir.build import Builder
from fllmc.ir.ops import COLLECTIVES, STARTABLE, Pipeline, Wait
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.walk import waits


class Flight(NamedTuple):
    """The op at `op` is started before the op at `start` and waited for before that at `end`."""

    op: int
    start: int
    end: int


class Finder:
    """Finds a function's flights. `seconds` are of each op, `limit` is of bytes in flight."""

    def __init__(
        self, function: Function, program: Program, seconds: Sequence[float], limit: int
    ) -> None:
        self.function, self.limit = function, limit
        self.seconds, self.sizes = seconds, program.sizes
        self.pipes = pipe_axes(program)
        self.makers = {v: at for at, op in enumerate(function.ops) for v in op.results}
        self.users: dict[int, int] = {v: len(function.ops) for v in function.results}
        for at in reversed(range(len(function.ops))):
            self.users.update(dict.fromkeys(function.ops[at].operands, at))
        self.found: dict[int, Flight] = {}

    def flights(self) -> dict[int, Flight]:
        """The flights by the positions of their ops, found in order."""
        begun = set(waits(self.function).values())
        for at, op in enumerate(self.function.ops):
            stays = at in begun or self.fixed(op) or not self.seconds[at]
            if isinstance(op.attrs, STARTABLE) and not stays:
                self.find(at, op)
        return self.found

    def fixed(self, op: Op) -> bool:
        """Whether the op is where stages of a pipeline meet."""
        if isinstance(op.attrs, COLLECTIVES):
            return bool(self.pipes.intersection(op.attrs.axes))
        return isinstance(op.attrs, Pipeline)

    def find(self, at: int, op: Op) -> None:
        """Let the op run beside others, if there are any and the bytes are within the limit."""
        end, hidden = at + 1, 0.0
        last = min(self.users.get(value, len(self.function.ops)) for value in op.results)
        while end < last and hidden < self.seconds[at] and not self.fixed(self.function.ops[end]):
            hidden += self.work(end)
            end += 1
        start, first = at, self.ready(at, op)
        while start > first and hidden < self.seconds[at]:
            if self.fixed(self.function.ops[start - 1]):
                break
            start -= 1
            hidden += self.work(start)
        beside = [f.op for f in self.found.values() if f.start < end and start < f.end]
        if hidden and sum(map(self.bytes, [at, *beside])) <= self.limit:
            self.found[at] = Flight(at, start, end)

    def work(self, at: int) -> float:
        """Seconds of an op that a transfer can run beside."""
        return 0.0 if isinstance(self.function.ops[at].attrs, STARTABLE) else self.seconds[at]

    def ready(self, at: int, op: Op) -> int:
        """Before which op it can be started at first; where it stands if it needs another's end."""
        makers = [self.makers[value] for value in op.operands if value in self.makers]
        waited = any(isinstance(self.function.ops[m].attrs, Wait) for m in makers)
        if waited or any(maker in self.found for maker in makers):
            return at
        return max((maker + 1 for maker in makers), default=0)

    def bytes(self, at: int) -> int:
        """Bytes of what a transfer takes and gives."""
        op = self.function.ops[at]
        kinds = [self.function.types[value] for value in (*op.operands, *op.results)]
        return sum(self.sizes.local_bytes(kind) for kind in kinds)


def pipe_axes(program: Program) -> set[str]:
    """The axes along which stages of a pipeline meet."""
    ops = [op.attrs for function in program.functions for op in function.ops]
    return {attrs.axis for attrs in ops if isinstance(attrs, Pipeline)}


def with_flights(
    function: Function, program: Program, seconds: Sequence[float], limit: int
) -> Function:
    """The function with transfers started and waited for; itself if none gains."""
    flights = Finder(function, program, seconds, limit).flights()
    if not flights:
        return function
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    started: dict[int, tuple[int, ...]] = {}
    for at, ends in order(function, flights):
        op = function.ops[at]
        b.path, b.span = op.path, op.span
        if ends:
            made = b.emit(Wait(), *started[at])
        else:
            made = b.emit(op.attrs, *(mapping[value] for value in op.operands))
            started[at] = made
        if ends or at not in flights:
            mapping.update(zip(op.results, made, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


def order(function: Function, flights: dict[int, Flight]) -> Iterator[tuple[int, bool]]:
    """The positions of all ops in their new order; marked where an op is waited for."""
    for at in range(len(function.ops) + 1):
        yield from ((flight.op, True) for flight in flights.values() if flight.end == at)
        yield from ((flight.op, False) for flight in flights.values() if flight.start == at)
        if at < len(function.ops) and at not in flights:
            yield at, False
