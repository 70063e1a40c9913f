"""What the programs of a pipeline's stages mean together, in plain numpy and float64.

All stages run side by side, each on the mesh less the pipeline axis, as `ir/evaluate.py` runs one
program. A stage goes on until it needs a message or a sum over the pipeline axis that is not there
yet; when none can go on, they wait for each other for ever, which is a fault of the compiler.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import numpy as np
from msgspec import structs

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import EVALUATE, Argument, Machine, Site
from fllmc.ir.evaluate_parts import Array, Parts, all_reduce, as_stored, join
from fllmc.ir.ops import AllReduce, Pipeline
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Mesh


class Sum:
    """A stage's part of a sum over the pipeline axis, among the stages at these positions."""

    def __init__(self, among: tuple[int, ...], parts: Parts):
        self.among, self.parts = among, parts


class Wait(NamedTuple):
    """A stage waits for a message."""

    text: str


Turn = Generator["Sum | Wait", Parts, tuple[Parts, ...]]


def evaluate_stages(
    programs: Sequence[Program], axis: str, entry: str, arguments: Mapping[str, Argument]
) -> dict[str, Array]:
    """The results of an entry, whole, by output name; `arguments` are global arrays by input name.

    Stacked parameters and states come and go with all layers. InternalError where stages wait for
    each other for ever, a message is left over, or copies differ.
    """
    mail: dict[tuple[str, int], Parts] = {}
    with np.errstate(all="ignore"):
        stages = [Stage(p, axis, rank, mail) for rank, p in enumerate(programs)]
        results = together([stage.run(entry, arguments) for stage in stages])
    if mail:
        raise InternalError(f"messages that nobody took: {sorted(mail)}")
    return joined(stages, entry, results, arguments)


def together(turns: Sequence[Turn]) -> list[tuple[Parts, ...]]:
    """Run all stages to their ends."""
    results: dict[int, tuple[Parts, ...]] = {}
    asked: dict[int, Sum | Wait | None] = dict.fromkeys(range(len(turns)))
    given: dict[int, Parts] = {}
    while len(results) < len(turns):
        moved = False
        for rank, turn in enumerate(turns):
            if rank in results or (isinstance(asked[rank], Sum) and rank not in given):
                continue
            before = asked[rank]
            try:
                asked[rank] = turn.send(given.pop(rank)) if rank in given else next(turn)
                moved |= not (isinstance(before, Wait) and asked[rank] == before)
            except StopIteration as end:
                results[rank], moved = end.value, True
        moved |= _sum_up(asked, given, len(turns))
        if not moved:
            raise InternalError(f"stages wait for each other: {asked}")
    return [results[rank] for rank in range(len(turns))]


def _sum_up(asked: Mapping[int, Sum | Wait | None], given: dict[int, Parts], count: int) -> bool:
    """Give the sums for which all that take part have come."""
    found = False
    for rank in range(count):
        mine = asked[rank]
        if not isinstance(mine, Sum) or rank in given:
            continue
        group = [asked[other] for other in mine.among]
        here = [other for other in group if isinstance(other, Sum) and other.among == mine.among]
        if rank == mine.among[0] and len(here) == len(group):
            ranks = range(len(mine.parts))
            total = tuple(reduce(np.add, [sum_.parts[r] for sum_ in here]) for r in ranks)
            given.update(dict.fromkeys(mine.among, total))
            found = True
    return found


class Stage:
    """One stage's program on its ranks of the mesh."""

    def __init__(
        self, program: Program, axis: str, rank: int, mail: dict[tuple[str, int], Parts]
    ) -> None:
        self.extent = program.mesh.extent((axis,))
        mesh = Mesh(tuple(each for each in program.mesh.axes if each.name != axis))
        self.program, self.axis, self.rank, self.mail = program, axis, rank, mail
        self.machine = Machine(structs.replace(program, mesh=mesh))

    def run(self, entry: str, arguments: Mapping[str, Argument]) -> Turn:
        """An entry's results on each rank's parts."""
        function = self.program.function(entry)
        values: dict[int, Parts] = {}
        for number, given in enumerate(function.inputs):
            value = self.own(given.name, as_stored(function.types[number], arguments[given.name]))
            values[number] = self.machine.split(given.name, function.types[number], value)
        for op in function.ops:
            operands = [values[number] for number in op.operands]
            results = yield from self.op(function, op, operands)
            values.update(zip(op.results, results, strict=True))
        return tuple(values[number] for number in function.results)

    def own(self, name: str, value: Array) -> Array:
        """This stage's layers of a stacked parameter or state."""
        layers = self.layers(name)
        return value[list(layers)] if layers else value

    def layers(self, name: str) -> tuple[int, ...]:
        """The layers that this stage has of a parameter or state; none of what is not stacked."""
        path = name.partition("#")[0]
        found = [p.layers for p in self.program.parameters if p.name == path]
        return found[0] if found else ()

    def op(self, function: Function, op: Op, operands: Sequence[Parts]) -> Turn:
        """One op of the entry."""
        site = Site(self.machine, function, op)
        if isinstance(op.attrs, Pipeline):
            return (yield from self.pipeline(op.attrs, operands))
        if isinstance(op.attrs, AllReduce) and self.axis in op.attrs.axes:
            (parts,) = operands
            rest = AllReduce(tuple(axis for axis in op.attrs.axes if axis != self.axis))
            if rest.axes:
                parts = all_reduce(rest, site.operands[0], parts, self.machine.sizes.mesh)
            total = yield Sum(op.attrs.among or tuple(range(self.extent)), parts)
            return (total,)
        results = EVALUATE[type(op.attrs)](op.attrs, site, operands)
        site.check(results)
        return results

    def pipeline(self, attrs: Pipeline, operands: Sequence[Parts]) -> Turn:
        """This stage's actions, one after the other."""
        held = dict(zip(attrs.names, operands, strict=True))
        sliced = attrs.names[attrs.carries : attrs.carries + attrs.slices]
        functions = {key: self.machine.functions[name] for key, name in attrs.functions}
        takes, gives = dict(attrs.takes), dict(attrs.gives)
        local: dict[tuple[str, int], Parts] = {}
        for action in attrs.actions:
            key, micro = action.split(".")[0], int(action.split(".")[1])
            stage, function = key[1:], functions[key]
            inputs: list[Parts] = []
            for given, kind in zip(function.inputs, function.types, strict=False):
                port = f"{given.name}.{stage}"
                if given.name in held:
                    whole = held[given.name]
                    value = tuple(p[micro] for p in whole) if given.name in sliced else whole
                    inputs.append(self.stretch(attrs, function, given.name, value))
                    continue
                if port in takes and (port, micro) not in local:
                    name = takes[port].split(".")[0]
                    while (name, micro) not in self.mail:
                        yield Wait(f"{action} for {port}")
                    local[port, micro] = self.mail.pop((name, micro))
                if (port, micro) not in local:
                    raise InternalError(f"{action}: no {given.name}: {kind}")
                inputs.append(local[port, micro])
            results = self.machine.run(function, inputs)
            for name, value in zip(function.outputs, results, strict=True):
                port = f"{name}.{stage}"
                if name in held:
                    held[name] = self.put_back(attrs, function, name, held[name], value)
                    continue
                local[port, micro] = value
                if port in gives:
                    self.mail[gives[port].split(".")[0], micro] = value
        return tuple(held[name] for name in attrs.names[: attrs.carries])

    def place(self, attrs: Pipeline, function: Function, name: str) -> slice | None:
        """The positions of an operand's first dim that a function takes or gives, if not all."""
        names = [(i.name, kind) for i, kind in zip(function.inputs, function.types, strict=False)]
        names += list(zip(function.outputs, function.signature.results, strict=True))
        kind = dict(reversed(names))[name]
        part = kind.names[0] if kind.names else ""
        if part not in attrs.parts:
            return None
        first = attrs.starts[attrs.parts.index(part)]
        return slice(first, first + self.program.sizes.size(part))

    def stretch(self, attrs: Pipeline, function: Function, name: str, value: Parts) -> Parts:
        """The part of an operand that a function takes."""
        place = self.place(attrs, function, name)
        return tuple(part[place] for part in value) if place else value

    def put_back(
        self, attrs: Pipeline, function: Function, name: str, whole: Parts, value: Parts
    ) -> Parts:
        """A carry with the part that a function gives."""
        place = self.place(attrs, function, name)
        if not place:
            return value
        changed = tuple(part.copy() for part in whole)
        for part, new in zip(changed, value, strict=True):
            part[place] = new
        return changed


def joined(
    stages: Sequence[Stage],
    entry: str,
    results: Sequence[tuple[Parts, ...]],
    arguments: Mapping[str, Argument],
) -> dict[str, Array]:
    """All stages' results put together; InternalError where copies of one differ."""
    found: dict[str, Array] = {}
    for stage, values in zip(stages, results, strict=True):
        function = stage.program.function(entry)
        kinds = function.signature.results
        for name, parts, kind in zip(function.outputs, values, kinds, strict=True):
            whole = join(parts, kind, stage.machine.sizes)
            layers = stage.layers(name)
            if layers:
                target = found.setdefault(name, np.full(np.shape(arguments[name]), np.nan))
                target[list(layers)] = whole
            elif name in found and not np.allclose(found[name], whole, rtol=1e-12, atol=1e-12):
                raise InternalError(f"stages differ in {name}")
            else:
                found[name] = whole
    return found
