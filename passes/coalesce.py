"""coalesce: sharded -> sharded. Collectives that can be made together are one call.

    %3 = all_gather{dim=embed, axes=[fsdp]}(%1); ...; %9 = all_gather{dim=ffn, axes=[fsdp]}(%2)
    ->
    %3, %4 = coalesced{collective=all_gather, axes=[fsdp], dims=[embed, ffn]}(%1, %2)

It is done for parameters, their gradients and scalars, of one dtype over the same axes, where none
needs another's result. So a layer's parameters are gathered by one call, before the first is used,
and its gradients scattered by one, when the last is there. A call moves what its parts moved. The
buffer that it is made in is as large, so outside of a stack, where a value may have a whole model's
layers, only as much is joined as `bucket_mib` allows. The gradients of the parameters of a bucket
adjoin (`passes/buckets.py`): they are summed over ranks where they lie, by one call of any size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import (
    AllGather,
    AllReduce,
    Coalesced,
    Pipeline,
    ReduceScatter,
    Scan,
    Signature,
)
from fllmc.ir.program import Function, Level, Op, Program
from fllmc.ir.types import Type, deals_zigzag
from fllmc.passes.base import Context, Pass
from fllmc.passes.buckets import Slot, slots_of
from fllmc.passes.clusters import Clusters
from fllmc.passes.inline import callees_first

Key = tuple[str, tuple[str, ...], str, str, str]
"""Kind, axes, dtype, way of combining and bucket: what collectives of one call share."""


class Coalesce(Pass, frozen=True):
    """Join collectives; outside of stacks up to `bucket_mib` MiB a call."""

    name: ClassVar[str] = "coalesce"
    takes: ClassVar[Level] = "sharded"
    gives: ClassVar[Level] = "sharded"
    keeps: ClassVar[str] = "math"

    bucket_mib: int = 32

    def run(self, program: Program, cx: Context) -> Program:
        """Join them in every function."""
        del cx
        stacks = stack_bodies(program)
        signatures: dict[str, Signature] = dict(program.signatures)
        done: list[Function] = []
        for function in callees_first(program):
            limit = None if function.name in stacks else self.bucket_mib << 20
            done.append(Joiner(function, program, limit).joined(signatures))
        return program.with_functions(*done)


def stack_bodies(program: Program) -> set[str]:
    """The functions that are run once for each layer of a stack."""
    stacks = {parameter.stack for parameter in program.parameters if parameter.stack}
    return {
        op.attrs.function
        for function in program.functions
        for op in function.ops
        if isinstance(op.attrs, Scan) and op.attrs.over in stacks
    }


class Joiner:
    """Finds which collectives of a function are made together, and in which order all ops go."""

    def __init__(self, function: Function, program: Program, limit: int | None) -> None:
        self.function = function
        self.program = program
        self.limit = limit
        self.clusters = Clusters(function)
        self.dims = [set(parameter.type.names) for parameter in program.parameters]
        self.pipes = {
            op.attrs.axis
            for f in program.functions
            for op in f.ops
            if isinstance(op.attrs, Pipeline)
        }
        entry = function.name in program.entries
        self.slots: dict[int, Slot] = slots_of(function, program) if entry else {}
        self.open: dict[Key, list[int]] = {}
        self.bytes: dict[int, int] = {}

    def joined(self, signatures: dict[str, Signature]) -> Function:
        """The function with its collectives joined."""
        for at in range(len(self.function.ops)):
            self.place(at)
        if all(len(members) < 2 for members in self.clusters.members):
            return self.function
        return rebuilt(self.function, self.program, self.order(), signatures)

    def place(self, at: int) -> None:
        """Put an op into the cluster that it may join, or into one of its own."""
        op = self.function.ops[at]
        if self.between_stages(op):
            self.open.clear()
        key = self.key(op)
        if key is None:
            self.clusters.start(at)
            return
        whole = op.results[0] if isinstance(op.attrs, AllGather) else op.operands[0]
        size = self.program.sizes.local_bytes(self.function.types[whole])
        for cluster in reversed(self.open.get(key, [])):
            fits = self.limit is None or bool(key[-1]) or self.bytes[cluster] + size <= self.limit
            if fits and self.clusters.may_join(at, cluster):
                self.clusters.join(at, cluster)
                self.bytes[cluster] += size
                return
        cluster = self.clusters.start(at)
        self.open.setdefault(key, []).append(cluster)
        self.bytes[cluster] = size

    def key(self, op: Op) -> Key | None:
        """What collectives that may be joined with this one have in common; None for other ops."""
        if not isinstance(op.attrs, AllGather | AllReduce | ReduceScatter):
            return None
        kind = self.function.types[op.operands[0]]
        apart = deals_zigzag(op.attrs.axes) or self.between_stages(op)
        if apart or not self.of_parameters(kind):
            return None
        slot = self.slots.get(op.results[0]) if isinstance(op.attrs, AllReduce) else None
        bucket = f"{slot.bucket} {slot.label}" if slot else ""
        return op.kind, op.attrs.axes, kind.dtype, kind.combine, bucket

    def between_stages(self, op: Op) -> bool:
        """Whether stages of a pipeline take part, each with a program of its own.

        They meet in one order, so these stay as they are and nothing is joined across them.
        """
        return isinstance(op.attrs, AllReduce) and bool(self.pipes.intersection(op.attrs.axes))

    def of_parameters(self, kind: Type) -> bool:
        """Whether some parameter has all the dims, so that the value is no activation."""
        return any(set(kind.names) <= dims for dims in self.dims)

    def order(self) -> list[list[int]]:
        """The clusters' members, each after all that it needs.

        Gathers are made where the first of them was, sums where the last was, and what needs a sum
        that is made later waits for it.
        """
        members = self.clusters.members
        after = self.dependencies()
        late: dict[int, bool] = {}
        place: dict[int, int] = {}
        for cluster in topological(range(len(members)), after):
            ops = [self.function.ops[at] for at in members[cluster]]
            gathers = isinstance(ops[0].attrs, AllGather)
            before = [place[other] for other in after[cluster] if late[other]]
            own = min(members[cluster]) if gathers else max(members[cluster])
            place[cluster] = max([own, *before])
            late[cluster] = bool(before) or (len(ops) > 1 and not gathers)
        wanted = sorted(place, key=lambda cluster: (place[cluster], min(members[cluster])))
        ordered = topological(wanted, after)
        return [sorted(members[cluster], key=self.rank) for cluster in ordered]

    def rank(self, at: int) -> tuple[int, int]:
        """By which the ops of one call are ordered: as the regions of their bucket, if any."""
        value = self.function.ops[at].results[0] if self.function.ops[at].results else -1
        return self.slots[value].region if value in self.slots else 0, at

    def dependencies(self) -> list[list[int]]:
        """The clusters that each needs directly, in the order in which they stand."""
        return [
            sorted({other for at in ops for other in self.clusters.inputs_of(at)})
            for ops in self.clusters.members
        ]


def topological(wanted: Sequence[int], after: Sequence[Sequence[int]]) -> list[int]:
    """The clusters in the wanted order, but for what is needed earlier."""
    done: dict[int, None] = {}
    begun: set[int] = set()
    for cluster in wanted:
        todo = [cluster]
        while todo:
            missing = [other for other in after[todo[-1]] if other not in done]
            if not missing:
                done[todo.pop()] = None
            elif todo[-1] in begun:
                raise InternalError("joined collectives need each other's results")
            else:
                begun.add(todo[-1])
                todo += reversed(missing)
    return list(done)


def rebuilt(
    function: Function,
    program: Program,
    order: Sequence[Sequence[int]],
    signatures: dict[str, Signature],
) -> Function:
    """The function with its ops in this order, several at once as one collective."""
    b = Builder(function.name, program.sizes, signatures)
    mapping = {
        number: b.input(given.name, function.types[number], given.role)
        for number, given in enumerate(function.inputs)
    }
    for members in order:
        ops = [function.ops[at] for at in members]
        attrs = ops[0].attrs if len(ops) == 1 else one_call(ops)
        b.path, b.span = path_of(ops), ops[0].span
        operands = [mapping[value] for op in ops for value in op.operands]
        results = b.emit(attrs, *operands)
        mapping.update(zip((v for op in ops for v in op.results), results, strict=True))
    return b.finish([mapping[v] for v in function.results], function.outputs, function.span)


def one_call(ops: Sequence[Op]) -> Coalesced:
    """The collective that does what these do."""
    first = ops[0].attrs
    assert isinstance(first, AllGather | AllReduce | ReduceScatter)
    dims = tuple(op.attrs.dim for op in ops if isinstance(op.attrs, AllGather | ReduceScatter))
    match first:
        case AllGather():
            return Coalesced("all_gather", first.axes, dims)
        case AllReduce():
            return Coalesced("all_reduce", first.axes)
        case _:
            return Coalesced("reduce_scatter", first.axes, dims)


def path_of(ops: Sequence[Op]) -> str:
    """The path that the ops have in common: that of their block."""
    paths = [op.path.split(".") for op in ops]
    shared: list[str] = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
