"""join-updates: plan -> plan. One op for the same elementwise work on many parameters.

    %8 = mul(%0 a, %6); %9 = sub(%2 a#m, %8); ...      and the same for b, of another shape
    ->
    %7, %8, %9, %10 = bucketed{function=train.bucket0.0, bucket=train.bucket0, regions=[a, b],
        lists=2}(%0, %1, %2, %3, %6)

Parameters whose updates are the same equations of the same scalars, that are divided over the same
axes and belong to the same stack, are the regions of one bucket; so are their gradients and states,
which the memory plan then lays one behind another. What else is done alike to each of them, as the
sum of the squares of its gradient, follows; these are then added in another order, the updates
themselves are equal bit for bit. Optimizers that mix elements stay as they are.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.ops import Bucketed, ReduceSum
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Dim
from fllmc.ir.walk import host_values
from fllmc.passes.base import Context, Pass
from fllmc.passes.buckets import Joined, find_joined
from fllmc.passes.clusters import Clusters


class JoinUpdates(Pass, frozen=True):
    """Join the updates of parameters of one kind, and what is done alike to their gradients."""

    name: ClassVar[str] = "join-updates"
    takes: ClassVar[Level] = "plan"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "math"

    def run(self, program: Program, cx: Context) -> Program:
        """Join within the entries: only what they are given can be laid out."""
        del cx
        for entry in program.entries:
            program = with_joined(program, program.function(entry))
        return program


def with_joined(program: Program, function: Function) -> Program:
    """The program with an entry's parts joined."""
    clusters = Clusters(function)
    for at in range(len(function.ops)):
        clusters.start(at)
    groups: dict[int, Joined] = {}
    for joined in find_joined(function, program):
        members = [at for part in joined.parts for at in part.members]
        if clusters.may_unite(members):
            for at in members[1:]:
                clusters.merge(clusters.cluster_of[members[0]], clusters.cluster_of[at])
            groups[members[0]] = joined
    if not groups:
        return program
    for joined in groups.values():
        program = program.with_dim(joined.bucket, joined.elements(program.sizes))
    return Rewriter(function, program, groups).rewritten(clusters)


class Rewriter:
    """Writes the function anew, groups as one op each; `groups` are by their first member."""

    def __init__(self, function: Function, program: Program, groups: dict[int, Joined]) -> None:
        self.function, self.program, self.groups = function, program, groups
        self.b = Builder(function.name, program.sizes, program.signatures)
        self.mapping = {
            number: self.b.input(given.name, function.types[number], given.role)
            for number, given in enumerate(function.inputs)
        }
        self.host = host_values(function)
        self.gone: set[int] = set()
        self.bodies: list[Function] = []

    def rewritten(self, clusters: Clusters) -> Program:
        """The program with the function and the functions of its groups."""
        by_cluster = {clusters.cluster_of[at]: joined for at, joined in self.groups.items()}
        for members in clusters.order():
            joined = by_cluster.get(clusters.cluster_of[members[0]])
            first = self.function.ops[members[0]]
            self.b.path, self.b.span = first.path, first.span
            if joined is None:
                self.keep(first)
            else:
                self.join(joined)
        old = self.function
        results = [self.mapping[value] for value in old.results]
        return self.program.with_functions(
            self.b.finish(results, old.outputs, old.span), *self.bodies
        )

    def keep(self, op: Op) -> None:
        """An op as it is, but for terms of a sum that are in another term now."""
        left = [value for value in op.operands if value not in self.gone]
        if len(left) == 1 < len(op.operands):
            self.mapping[op.results[0]] = self.mapping[left[0]]
            return
        results = self.b.emit(op.attrs, *(self.mapping[value] for value in left))
        self.mapping.update(zip(op.results, results, strict=True))

    def join(self, joined: Joined) -> None:
        """One op for the parts of all regions."""
        body = self.body(joined, f"{joined.bucket}.{len(self.bodies)}")
        self.bodies.append(body)
        self.b.functions[body.name] = body.signature
        first, parts = joined.parts[0], joined.parts
        lists = zip(*(part.reads for part in parts), strict=True)
        operands = [value for values in lists for value in values] + list(first.scalars)
        attrs = Bucketed(body.name, joined.bucket, joined.regions, len(first.reads))
        results = iter(self.b.emit(attrs, *(self.mapping[value] for value in operands)))
        for values in zip(*(part.writes for part in parts), strict=True):
            if self.function.types[values[0]].dims:
                self.mapping.update((value, next(results)) for value in values)
            else:
                self.mapping[values[0]] = next(results)
                self.gone.update(values[1:])

    def body(self, joined: Joined, name: str) -> Function:
        """The function that does the first part's work on the whole bucket."""
        first, types = joined.parts[0], self.function.types
        inner = Builder(name, self.program.sizes)
        flat = (Dim(joined.bucket),)
        mapping = {
            value: inner.input(label, types[value].placed(flat))
            for value, label in zip(first.reads, joined.reads, strict=True)
        }
        for number, value in enumerate(first.scalars):
            role = "host" if value in self.host else "value"
            mapping[value] = inner.input(f"scalar{number}", types[value], role)
        for at in first.members:
            op = self.function.ops[at]
            inner.path, inner.span = op.path, op.span
            attrs = ReduceSum((joined.bucket,)) if isinstance(op.attrs, ReduceSum) else op.attrs
            results = inner.emit(attrs, *(mapping[value] for value in op.operands))
            mapping.update(zip(op.results, results, strict=True))
        return inner.finish([mapping[value] for value in first.writes], joined.writes)
