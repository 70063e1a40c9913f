"""What a sharded program moves, found without the planner: the judge of its list of collectives."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from msgspec import Struct

from fllmc.ir.ops import AllGather, AllReduce, AllToAll, ReduceScatter, Scan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Sizes, Type


class Traffic(Struct, frozen=True):
    """One collective of an entry: what one rank hands in or gets, and how often a step runs it.

    `bytes` counts, for one call on one rank, the tensor of an all_reduce, the result of an
    all_gather, and the operand of a reduce_scatter or an all_to_all. `path` is the op that needs
    it. `calls` is the product of the lengths of the scans around it.
    """

    entry: str
    function: str
    kind: str
    axes: tuple[str, ...]
    path: str
    type: Type
    bytes: int
    calls: int

    @property
    def total(self) -> int:
        """Bytes of all calls of one step, on one rank."""
        return self.bytes * self.calls


def traffic(program: Program) -> tuple[Traffic, ...]:
    """Every collective of a sharded program, by entry, in the order in which a step meets them."""
    functions = {function.name: function for function in program.functions}
    sizes = program.sizes
    found: list[Traffic] = []
    for entry in program.entries:
        for function, op, calls in walk(functions[entry], functions, sizes):
            if isinstance(op.attrs, AllReduce | AllGather | AllToAll | ReduceScatter):
                given, gives = (function.types[v] for v in (op.operands[0], op.results[0]))
                moved = gives if isinstance(op.attrs, AllGather) else given
                count = sizes.local_bytes(moved)
                axes = op.attrs.axes
                found.append(
                    Traffic(entry, function.name, op.kind, axes, op.path, moved, count, calls)
                )
    return tuple(found)


def walk(
    function: Function,
    functions: dict[str, Function],
    sizes: Sizes,
    around: tuple[int, ...] = (),
) -> Iterator[tuple[Function, Op, int]]:
    """A function's ops and those of the functions that it runs, with how often each is run."""
    for op in function.ops:
        yield function, op, prod(around)
        name = getattr(op.attrs, "function", "")
        if name:
            turns = (sizes.size(op.attrs.over),) if isinstance(op.attrs, Scan) else ()
            yield from walk(functions[name], functions, sizes, (*around, *turns))
