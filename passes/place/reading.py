"""A placed function as values in several forms: what is chosen anew when its collectives are."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from fllmc.ir.ops import AllGather, AllReduce, AllToAll, Fill, LocalSlice, ReduceScatter
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Type

MOVES = (AllGather, AllReduce, AllToAll, LocalSlice, ReduceScatter)
"""Ops that give the same value in another form."""


class Reading(Struct, frozen=True):
    """A function without its moves, and without what none of its results needs.

    `roots` has, for each value, the one that it is another form of; `ops` are the others than
    moves and constants, `fills` the constants by their value, `forms` the forms of each root in
    the order in which they are made, and `moves` the moves that make them. `types` has the type of
    each value, those in `sums` included, which `sums.py` adds.
    """

    function: Function
    types: tuple[Type, ...]
    roots: tuple[int, ...]
    ops: tuple[Op, ...]
    fills: Mapping[int, Op]
    forms: Mapping[int, tuple[Type, ...]]
    moves: Mapping[int, tuple[Op, ...]]
    sums: frozenset[int] = frozenset()

    def term(self, op: Op) -> bool:
        """Whether the op is a term of a sum."""
        return len(op.operands) == 2 and op.operands[1] in self.sums

    def total(self, op: Op) -> bool:
        """Whether the op is all of a sum."""
        return len(op.results) == 2 and op.results[0] in self.sums


def read(function: Function) -> Reading:
    """The function's values and ops, its moves set apart."""
    roots = list(range(len(function.types)))
    ops_needed = needed(function)
    made = [*range(len(function.inputs)), *(v for op in ops_needed for v in op.results)]
    ops: list[Op] = []
    fills: dict[int, Op] = {}
    moves: dict[int, list[Op]] = {}
    for op in ops_needed:
        if isinstance(op.attrs, MOVES):
            root = roots[op.operands[0]]
            roots[op.results[0]] = root
            moves.setdefault(root, []).append(op)
        elif isinstance(op.attrs, Fill):
            fills[op.results[0]] = op
        else:
            ops.append(op)
    forms: dict[int, dict[Type, None]] = {}
    for value in made:
        forms.setdefault(roots[value], {})[function.types[value]] = None
    return Reading(
        function,
        function.types,
        tuple(roots),
        tuple(ops),
        fills,
        {root: tuple(kinds) for root, kinds in forms.items()},
        {root: tuple(found) for root, found in moves.items()},
    )


def needed(function: Function) -> tuple[Op, ...]:
    """The ops without those whose results nothing needs."""
    wanted = set(function.results)
    found: list[Op] = []
    for op in reversed(function.ops):
        if wanted.intersection(op.results):
            found.append(op)
            wanted.update(op.operands)
    return tuple(reversed(found))
