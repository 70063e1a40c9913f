"""The evaluator: what a program means, in plain numpy and float64.

All floating-point values are float64 whatever their types say, and casts do nothing, so two
programs that are equal in exact arithmetic agree here to about 1e-12. A placed program is run by
all ranks of its mesh in lockstep on global arrays: inputs are split by their types, local ops see
one rank's arrays and coordinates, collectives combine across ranks, and results are joined again.
A result whose replicas differ, or that is still partial, is a fault of the compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import reduce
from typing import Any, TypeAlias

import numpy as np

from fllmc.ir import ops
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate_experts import exchange_rows
from fllmc.ir.evaluate_local import LOCAL, LocalRule, identity
from fllmc.ir.evaluate_parts import (
    Array,
    Here,
    Parts,
    all_gather,
    all_reduce,
    all_to_all,
    as_stored,
    join,
    local_slice,
    reduce_scatter,
    split,
)
from fllmc.ir.evaluate_ring import ring_attend, ring_attend_grad
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Mesh, Sizes, Type

Argument: TypeAlias = "Array | float | int"


def evaluate(program: Program, entry: str, arguments: Mapping[str, Argument]) -> dict[str, Array]:
    """The results of a function on global arrays, by output name.

    `arguments` are keyed by input name, each of its type's global shape in layout order.
    """
    function = program.function(entry)
    machine = Machine(program)
    names = [given.name for given in function.inputs]
    if sorted(names) != sorted(arguments):
        raise InternalError(f"{entry} takes {sorted(names)}, not {sorted(arguments)}")
    inputs = [
        machine.split(name, kind, arguments[name])
        for name, kind in zip(names, function.types, strict=False)
    ]
    with np.errstate(all="ignore"):
        results = machine.run(function, inputs)
    kinds = function.signature.results
    joined = [join(p, kind, machine.sizes) for p, kind in zip(results, kinds, strict=True)]
    return dict(zip(function.outputs, joined, strict=True))


class Machine:
    """All ranks of a program's mesh, run in lockstep. Unplaced levels are run by one rank."""

    def __init__(self, program: Program) -> None:
        placed = program.level in ("sharded", "plan")
        self.functions = {function.name: function for function in program.functions}
        self.sizes = Sizes(program.sizes.dims, program.mesh if placed else Mesh())
        self.coordinates = [self.sizes.mesh.coordinates(r) for r in range(self.sizes.mesh.size)]

    def with_size(self, dim: str, size: int) -> Machine:
        """The machine with another size of a dim."""
        other = copy(self)
        other.sizes = Sizes({**self.sizes.dims, dim: size}, self.sizes.mesh)
        return other

    def split(self, name: str, kind: Type, value: Argument) -> Parts:
        """Each rank's part of an argument."""
        array = as_stored(kind, value)
        if array.shape != self.sizes.shape(kind) or kind.partial:
            raise InternalError(f"argument {name} of shape {array.shape} for {kind}")
        return split(array, kind, self.sizes)

    def run(self, function: Function, inputs: Sequence[Parts]) -> tuple[Parts, ...]:
        """A function's results on each rank's parts."""
        values: dict[int, Parts] = dict(enumerate(inputs))
        for op in function.ops:
            site = Site(self, function, op)
            results = EVALUATE[type(op.attrs)](
                op.attrs, site, [values[number] for number in op.operands]
            )
            site.check(results)
            values.update(zip(op.results, results, strict=True))
        return tuple(values[number] for number in function.results)


class Site:
    """One op being run: its types and the machine."""

    def __init__(self, machine: Machine, function: Function, op: Op) -> None:
        self.machine = machine
        self.where = f"{function.name}: {op.kind} at %{op.results[0] if op.results else '-'}"
        self.operands = tuple(function.types[number] for number in op.operands)
        self.results = tuple(function.types[number] for number in op.results)

    def here(self, rank: int) -> Here:
        """The site as one rank sees it."""
        machine = self.machine
        return Here(self.operands, self.results, machine.sizes, machine.coordinates[rank])

    def check(self, results: Sequence[Parts]) -> None:
        """InternalError unless every rank's results have the shapes that their types say."""
        for kind, parts in zip(self.results, results, strict=True):
            shape = self.machine.sizes.local_shape(kind)
            if any(part.shape != shape for part in parts):
                raise InternalError(f"{self.where}: shape {parts[0].shape} for {kind}")


Rule: TypeAlias = Callable[[Any, Site, Sequence[Parts]], tuple[Parts, ...]]


def local(rule: LocalRule) -> Rule:
    """The rule that every rank runs on its own arrays."""

    def lifted(attrs: ops.Attrs, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
        by_rank: list[tuple[Array, ...]] = []
        for rank in range(len(site.machine.coordinates)):
            found = rule(attrs, site.here(rank), *(parts[rank] for parts in operands))
            by_rank.append(found if isinstance(found, tuple) else (found,))
        return tuple(zip(*by_rank, strict=True))

    return lifted


def across(rule: Callable[[Any, Type, Parts, Mesh], Parts]) -> Rule:
    """The rule of a collective: all ranks' parts at once."""

    def lifted(attrs: ops.Attrs, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
        return (rule(attrs, site.operands[0], operands[0], site.machine.sizes.mesh),)

    return lifted


def ring(rule: Callable[[Any, Sequence[Here], Sequence[Parts]], tuple[Parts, ...]]) -> Rule:
    """The rule of an op that has ranks work in turn: all ranks' sites and parts at once."""

    def lifted(attrs: ops.Attrs, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
        heres = [site.here(rank) for rank in range(site.machine.sizes.mesh.size)]
        return rule(attrs, heres, operands)

    return lifted


def call(attrs: ops.Call | ops.Fused, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
    """The function's results; how a fused one is tiled does not matter here."""
    return site.machine.run(site.machine.functions[attrs.function], operands)


def bucketed(attrs: ops.Bucketed, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
    """What the function by itself gives for each region; sums are added in the regions' order."""
    given, count = attrs.listed(operands), len(attrs.regions)
    by_region: list[tuple[Parts, ...]] = []
    for region in range(count):
        flat = [tuple(part.reshape(-1) for part in parts[region]) for parts in given]
        machine = site.machine.with_size(attrs.bucket, flat[0][0].size)
        function = machine.functions[attrs.function]
        by_region.append(machine.run(function, [*flat, *attrs.scalars(operands)]))
    found: list[Parts] = []
    for results in zip(*by_region, strict=True):
        if results[0][0].ndim:
            shapes = [parts[0].shape for parts in given[0]]
            pairs = zip(results, shapes, strict=True)
            found += (tuple(part.reshape(shape) for part in parts) for parts, shape in pairs)
        else:
            found.append(tuple(reduce(np.add, parts) for parts in zip(*results, strict=True)))
    return tuple(found)


def coalesced(attrs: ops.Coalesced, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
    """What each collective by itself gives."""
    mesh = site.machine.sizes.mesh
    found: list[Parts] = []
    given = zip(attrs.each(len(operands)), site.operands, operands, strict=True)
    for part, kind, held in given:
        match part:
            case ops.AllGather():
                found.append(all_gather(part, kind, held, mesh))
            case ops.AllReduce():
                found.append(all_reduce(part, kind, held, mesh))
            case _:
                found.append(reduce_scatter(part, kind, held, mesh))
    return tuple(found)


def wait(attrs: ops.Wait, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
    """What was started: values do not change while it is under way."""
    del attrs, site
    return tuple(operands)


def scan(attrs: ops.Scan, site: Site, operands: Sequence[Parts]) -> tuple[Parts, ...]:
    """A turn for each position, carries handed on, other results stacked."""
    machine, stop = site.machine, attrs.carries + attrs.slices
    carries, slices, shared = (
        operands[: attrs.carries],
        operands[attrs.carries : stop],
        operands[stop:],
    )
    steps = range(machine.sizes.size(attrs.over))
    last = steps[0 if attrs.reverse else -1]
    stacked: dict[int, tuple[Parts, ...]] = {}
    for step in reversed(steps) if attrs.reverse else steps:
        own = [tuple(part[step] for part in parts) for parts in slices]
        if attrs.final and step == last:
            results = machine.run(machine.functions[attrs.final], (*carries, *own, *shared))
        else:
            results = turn(attrs, machine, carries, own, shared)
        carries, stacked[step] = results[: attrs.carries], results[attrs.carries :]
    rows = [stacked[step] for step in steps]
    joined = [
        tuple(np.stack(parts) for parts in zip(*column, strict=True))
        for column in zip(*rows, strict=True)
    ]
    return (*carries, *joined)


def turn(
    attrs: ops.Scan,
    machine: Machine,
    carries: Sequence[Parts],
    own: Sequence[Parts],
    shared: Sequence[Parts],
) -> tuple[Parts, ...]:
    """The carries and stacked results of one turn: what runs ahead, the function, what is behind.

    When each of the three is done makes no difference to what it gives.
    """
    early, late = own[: attrs.early], own[len(own) - attrs.late :]
    made = machine.run(machine.functions[attrs.ahead], early) if attrs.ahead else ()
    middle = own[attrs.early : len(own) - attrs.late]
    function = machine.functions[attrs.function]
    results = machine.run(function, (*carries, *middle, *shared, *made))
    if not attrs.behind:
        return results
    kept = len(results) - attrs.handed
    after = machine.run(machine.functions[attrs.behind], (*results[kept:], *late))
    return (*results[:kept], *after)


EVALUATE: dict[type[ops.Attrs], Rule] = {
    **{attrs: local(rule) for attrs, rule in LOCAL.items()},
    ops.AllGather: across(all_gather),
    ops.AllReduce: across(all_reduce),
    ops.AllToAll: across(all_to_all),
    ops.Bucketed: bucketed,
    ops.Call: call,
    ops.Coalesced: coalesced,
    ops.ExchangeRows: ring(exchange_rows),
    ops.Fused: call,
    ops.LocalSlice: across(local_slice),
    ops.ReduceScatter: across(reduce_scatter),
    ops.RingAttend: ring(ring_attend),
    ops.RingAttendGrad: ring(ring_attend_grad),
    ops.Share: local(identity),
    ops.Scan: scan,
    ops.Wait: wait,
}
