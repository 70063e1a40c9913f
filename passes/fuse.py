"""fuse: plan -> plan. Group elementwise ops and reductions into kernels over rows.

    %3 = mul(%1, %2); %4 = sum{dims=[embed]}(%3); %5 = rsqrt(%4)      (all [batch, seq, ...])
    ->
    %4, %5 = fused{function=layer.fused0, rows=[batch, seq]}(%1, %2)

A group has common leading dims, its rows. Every value in it begins with all the rows or has none of
them, so a CPU works through it in tiles that stay in cache and a GPU in one kernel; what only the
group uses is never written to memory. A sum over all rows is gathered tile by tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import Bucketed, Elementwise, Fused, Pick, ReduceMax, ReduceSum, Spread
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Dim, Type
from fllmc.ir.walk import host_values
from fllmc.passes.base import Context, Pass
from fllmc.passes.clusters import Clusters

MAX_ROW_BYTES = 1 << 20
"""A row larger than this would not leave room for a tile in a core's cache."""


class Group(msgspec.Struct):
    """A group while it grows: its rows and the row sums that may not be read inside.

    Rows are dims as they are placed: what an axis divides is not worked through with what is whole.
    """

    rows: tuple[Dim, ...]
    row_sums: set[int]


def fusable(op: Op) -> bool:
    """Whether the op can be part of a group at all."""
    return isinstance(op.attrs, Elementwise | ReduceSum | ReduceMax | Pick | Spread)


def prefix(a: Sequence[Dim], b: Sequence[Dim]) -> tuple[Dim, ...]:
    """The longest common beginning."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return tuple(a[:count])


def names_of(rows: Sequence[Dim]) -> set[str]:
    """The names of the rows."""
    return {dim.name for dim in rows}


class Fuser:
    """Builds the groups of one function."""

    def __init__(self, function: Function, program: Program):
        self.function = function
        self.sizes = program.sizes
        self.host = host_values(function)
        self.clusters = Clusters(function)
        self.groups: dict[int, Group] = {}

    def tensors(self, op: Op) -> list[Type]:
        """Types of the op's values that are not host scalars."""
        values = (*op.operands, *op.results)
        return [self.function.types[value] for value in values if value not in self.host]

    def rows_with(self, rows: tuple[Dim, ...], op: Op) -> tuple[tuple[Dim, ...], bool] | None:
        """The rows of a group once the op joins and whether the op is a row sum, or None.

        The result must have the rows too, or be their sum: what has none is no work for a tile.
        """
        operands = [self.function.types[v] for v in op.operands if v not in self.host]
        result = self.function.types[op.results[0]]
        if isinstance(op.attrs, Pick | Spread) and not self.row_index(op):
            return None
        for kind in operands:
            if kind.dims[:1] == rows[:1]:
                rows = prefix(rows, kind.dims)
        row_sum = False
        if isinstance(op.attrs, ReduceSum | ReduceMax):
            dims = op.attrs.dims
            row_sum = rows[0].name in dims
            if row_sum and isinstance(op.attrs, ReduceMax):
                return None
            rows = tuple(takewhile(lambda dim: (dim.name in dims) == row_sum, rows))
        if not row_sum:
            rows = prefix(rows, result.dims)
        if not rows or (row_sum and set(result.names) & names_of(rows)):
            return None
        kinds = [*operands, result]
        good = all(self.fits(kind, rows) for kind in kinds)
        return (rows, row_sum) if good and self.enough(kinds, rows) else None

    def row_index(self, op: Op) -> bool:
        """Whether a pick or spread works along the last dim, with an index for each other one."""
        index = self.function.types[op.operands[1]]
        match op.attrs:
            case Pick(dim=inner):
                wide = self.function.types[op.operands[0]]
            case Spread(dim=dim):
                wide, inner = self.function.types[op.results[0]], dim.name
            case _:
                return False
        return wide.names[-1:] == (inner,) and index.names == wide.names[:-1]

    def fits(self, kind: Type, rows: tuple[Dim, ...]) -> bool:
        """Whether a value begins with the rows or has none of their dims."""
        return kind.dims[: len(rows)] == rows or not set(kind.names) & names_of(rows)

    def enough(self, kinds: Sequence[Type], rows: tuple[Dim, ...]) -> bool:
        """Whether a row is small enough for tiles to stay in cache."""
        inner = (self.sizes.local_bytes(kind.without(names_of(rows))) for kind in kinds)
        widest = max(inner, default=0)
        return widest <= MAX_ROW_BYTES

    def place(self, at: int) -> None:
        """Put op `at` into the best group that it may join, or into a new one."""
        op = self.function.ops[at]
        if not fusable(op) or op.results[0] in self.host:
            self.clusters.start(at)
            return
        near = self.candidates(at)
        for cluster in near:
            group = self.groups[cluster]
            found = self.rows_with(group.rows, op)
            reads = bool(group.row_sums & set(op.operands))
            if found is None or reads or not self.still_fits(cluster, found[0]):
                continue
            if self.clusters.may_join(at, cluster):
                self.clusters.join(at, cluster)
                group.rows = found[0]
                if found[1]:
                    group.row_sums.add(op.results[0])
                for other in near:
                    if other != cluster:
                        self.unite(cluster, other)
                return
        cluster = self.clusters.start(at)
        dims = max(self.tensors(op), key=lambda kind: len(kind.dims)).dims
        # The most rows that all its tensors can share: a bias has none of a token's dims.
        tried = (self.rows_with(dims[:count], op) for count in range(len(dims), 0, -1))
        found = next((rows for rows in tried if rows is not None), None)
        if found is not None:
            sums = {op.results[0]} if found[1] else set[int]()
            self.groups[cluster] = Group(found[0], sums)

    def unite(self, cluster: int, other: int) -> None:
        """Merge another group into one that now shares a value with it, where that is sound."""
        a, b = self.groups[cluster], self.groups[other]
        rows = prefix(a.rows, b.rows)
        sums = a.row_sums | b.row_sums
        members = self.clusters.members[cluster] + self.clusters.members[other]
        reads = {value for at in members for value in self.function.ops[at].operands}
        if not rows or reads & sums or not self.clusters.may_merge(cluster, other):
            return
        if self.still_fits(cluster, rows) and self.still_fits(other, rows):
            self.clusters.merge(cluster, other)
            a.rows, a.row_sums = rows, sums
            del self.groups[other]

    def still_fits(self, cluster: int, rows: tuple[Dim, ...]) -> bool:
        """Whether all members still fit when the rows shrink to `rows`."""
        ops = [self.function.ops[at] for at in self.clusters.members[cluster]]
        kinds = [kind for op in ops for kind in self.tensors(op)]
        return all(self.fits(kind, rows) for kind in kinds) and self.enough(kinds, rows)

    def candidates(self, at: int) -> list[int]:
        """Groups that share a value with the op, the latest first."""
        op = self.function.ops[at]
        near = self.clusters.inputs_of(at)
        for cluster in self.groups:
            reads = {
                v for m in self.clusters.members[cluster] for v in self.function.ops[m].operands
            }
            if reads & (set(op.operands) - self.host):
                near.add(cluster)
        return sorted((cluster for cluster in near if cluster in self.groups), reverse=True)


def outline(
    fuser: Fuser, members: list[int], name: str, program: Program
) -> tuple[Function, list[int], list[int]]:
    """The group as a function, with the values that it reads and those that others read."""
    function = fuser.function
    inside = {value for at in members for value in function.ops[at].results}
    reads = sorted({v for at in members for v in function.ops[at].operands} - inside)
    others = [op for at, op in enumerate(function.ops) if at not in set(members)]
    wanted = {v for op in others for v in op.operands} | set(function.results)
    writes = sorted(inside & wanted)
    b = Builder(name, program.sizes)
    mapping: dict[int, int] = {}
    for value in reads:
        role = "host" if value in fuser.host else "value"
        mapping[value] = b.input(f"v{value}", function.types[value], role)
    for at in members:
        op = function.ops[at]
        b.path, b.span = op.path, op.span
        results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
        mapping.update(zip(op.results, results, strict=True))
    body = b.finish([mapping[v] for v in writes], [f"v{value}" for value in writes])
    return body, reads, writes


def fused_function(function: Function, program: Program) -> tuple[Function, list[Function]]:
    """The function with its groups outlined, and the groups' functions."""
    fuser = Fuser(function, program)
    for at in range(len(function.ops)):
        fuser.place(at)
    cluster_of = fuser.clusters.cluster_of
    bodies: list[Function] = []
    b = Builder(function.name, program.sizes, program.signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for members in fuser.clusters.order():
        first = function.ops[members[0]]
        b.path, b.span = first.path, first.span
        group = fuser.groups.get(cluster_of[members[0]])
        if group is None:
            results = b.emit(first.attrs, *(mapping[value] for value in first.operands))
            mapping.update(zip(first.results, results, strict=True))
            continue
        name = f"{function.name}.fused{len(bodies)}"
        body, reads, writes = outline(fuser, members, name, program)
        if not writes:
            continue
        bodies.append(body)
        b.functions[name] = body.signature
        rows = tuple(dim.name for dim in group.rows)
        results = b.emit(Fused(name, rows), *(mapping[value] for value in reads))
        mapping.update(zip(writes, results, strict=True))
    done = b.finish([mapping[v] for v in function.results], function.outputs, function.span)
    return done, bodies


class Fuse(Pass, frozen=True):
    """Group elementwise ops and reductions over common leading dims."""

    name: ClassVar[str] = "fuse"
    takes: ClassVar[Level] = "plan"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "bits"

    def run(self, program: Program, cx: Context) -> Program:
        """Fuse within every function."""
        del cx
        changed: list[Function] = []
        ops = [op.attrs for function in program.functions for op in function.ops]
        whole = {attrs.function for attrs in ops if isinstance(attrs, Bucketed)}
        for function in program.functions:
            if function.name in whole:  # one kernel already
                continue
            done, bodies = fused_function(function, program)
            changed += [done, *bodies]
        return program.with_functions(*changed)
