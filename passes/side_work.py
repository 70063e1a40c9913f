"""Which work of a stack's body can run beside its other turns, and which values pass between.

Ahead of a turn: what gathers or fetches values from the turn's slices alone, with what it takes to
make its operands. Behind a turn: what scatters, sums or puts away values that nothing in the turn
needs again, with what makes stacked results of them. The rest is the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set

import msgspec

from fllmc.ir.ops import (
    AllGather,
    AllReduce,
    Cast,
    Coalesced,
    Elementwise,
    Fill,
    FromHost,
    Fused,
    LocalSlice,
    ReduceScatter,
    Rename,
    Scan,
    ToHost,
    Transpose,
)
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes
from fllmc.ir.walk import host_values

LIGHT = (Cast, Elementwise, Fused, LocalSlice, Rename, Transpose)
"""Ops that may go with a transfer: they are a pass over its operands or results at most."""


def gathers(op: Op) -> bool:
    """Whether the op brings values here."""
    if isinstance(op.attrs, Coalesced):
        return op.attrs.collective == "all_gather"
    return isinstance(op.attrs, AllGather | FromHost)


def puts_away(op: Op) -> bool:
    """Whether the op takes values from here."""
    if isinstance(op.attrs, Coalesced):
        return op.attrs.collective != "all_gather"
    return isinstance(op.attrs, AllReduce | ReduceScatter | ToHost)


Find = Callable[[Set[int]], tuple[int, ...]]
"""What can run beside other turns without some transfers."""
Passing = Callable[[Sequence[int]], list[int]]
"""The values that pass between such ops and the middle."""


class SideWork(msgspec.Struct, frozen=True):
    """Positions of the ops that go ahead and behind, each in order; constants stand in neither."""

    ahead: tuple[int, ...]
    behind: tuple[int, ...]


class Body:
    """A stack's body, and who makes and uses its values."""

    def __init__(self, function: Function, attrs: Scan, sizes: Sizes) -> None:
        self.function, self.attrs, self.sizes = function, attrs, sizes
        self.slices = range(attrs.carries, attrs.carries + attrs.slices)
        self.makers = {v: at for at, op in enumerate(function.ops) for v in op.results}
        self.users: dict[int, set[int]] = {}
        for at, op in enumerate(function.ops):
            for value in op.operands:
                self.users.setdefault(value, set()).add(at)
        self.constants = {
            value
            for value in host_values(function)
            if value in self.makers and isinstance(function.ops[self.makers[value]].attrs, Fill)
        }

    def side_work(self, limit: int) -> SideWork:
        """The work that runs beside other turns, without the largest until it is in the limit."""
        return SideWork(
            self.within(self.ahead, self.leaving, limit),
            self.within(self.behind, self.handed, limit),
        )

    def ahead(self, without: Set[int]) -> tuple[int, ...]:
        """What runs ahead of a turn, but for these gathers."""
        early, wanted = {*self.slices}, set[int]()
        for at, op in enumerate(self.function.ops):
            if not op.operands or not early.union(self.constants).issuperset(op.operands):
                continue
            if gathers(op) and at not in without:
                wanted.add(at)
            elif isinstance(op.attrs, LIGHT):
                early.update(op.results)
        todo = list(wanted)
        while todo:
            for value in self.function.ops[todo.pop()].operands:
                at = self.makers.get(value)
                if at is not None and at not in wanted and value not in self.constants:
                    wanted.add(at)
                    todo.append(at)
        return tuple(sorted(wanted))

    def behind(self, without: Set[int]) -> tuple[int, ...]:
        """What runs behind a turn, but for these transfers."""
        carried = set(self.function.results[: self.attrs.carries])
        late: set[int] = set()
        for at in reversed(range(len(self.function.ops))):
            op = self.function.ops[at]
            moves = puts_away(op) and at not in without
            if not (moves or isinstance(op.attrs, LIGHT)) or carried.intersection(op.results):
                continue
            if self.constants.issuperset(op.results) or self.takes_numbers(op):
                continue
            if all(self.users.get(value, set()) <= late for value in op.results):
                late.add(at)
        found: set[int] = set()
        for at in sorted(late):
            makers = {self.makers.get(value, -1) for value in self.function.ops[at].operands}
            if puts_away(self.function.ops[at]) or makers & found:
                found.add(at)
        return tuple(sorted(found))

    def takes_numbers(self, op: Op) -> bool:
        """Whether the op takes a host scalar that is no constant."""
        return bool((host_values(self.function) - self.constants).intersection(op.operands))

    def leaving(self, ops: Sequence[int]) -> list[int]:
        """The values that these ops make and that others, or the caller, take."""
        inside = set(ops)
        return [
            value
            for at in ops
            for value in self.function.ops[at].results
            if self.users.get(value, set()) - inside or value in self.function.results
        ]

    def handed(self, behind: Sequence[int]) -> list[int]:
        """The values of the middle that what is behind takes."""
        made = {v for at in behind for v in self.function.ops[at].results}
        taken = [v for at in behind for v in self.function.ops[at].operands]
        mine = made | self.constants | {*self.slices}
        return [value for value in dict.fromkeys(taken) if value not in mine]

    def late_slices(self, behind: Sequence[int]) -> list[int]:
        """The slices that what is behind takes itself."""
        taken = {v for at in behind for v in self.function.ops[at].operands}
        return [value for value in self.slices if value in taken]

    def within(self, find: Find, passing: Passing, limit: int) -> tuple[int, ...]:
        """The work that is found, of which no more bytes pass twice than the limit."""
        without: set[int] = set()
        while True:
            ops = find(without)
            if 2 * self.bytes(passing(ops)) <= limit:
                return ops
            moves = [at for at in ops if gathers(self.function.ops[at])]
            moves += [at for at in ops if puts_away(self.function.ops[at])]
            without.add(max(moves, key=self.moved))

    def moved(self, at: int) -> int:
        """Bytes of what a transfer takes and gives."""
        return self.bytes((*self.function.ops[at].operands, *self.function.ops[at].results))

    def bytes(self, values: Iterable[int]) -> int:
        """Bytes of some values."""
        return sum(self.sizes.local_bytes(self.function.types[value]) for value in values)
