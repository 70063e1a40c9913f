"""One rank's whole step: its turns in the pipeline, then its own parameters' updates.

What all stages' parameters go into, such as the norm of the gradients, is summed over the pipeline
axis; the gradient of a parameter that several stages use is summed over these.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import (
    Add,
    AddN,
    AllReduce,
    Fill,
    Iota,
    Pipeline,
    ReduceSum,
    Scan,
    Share,
    Signature,
)
from fllmc.ir.ops.base import merged
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Sizes, Type
from fllmc.passes.stages.body import LINEAR
from fllmc.passes.stages.cut_body import Message, StageWork

GRADIENT = "grad."


class Step(NamedTuple):
    """An entry, and how its micro-batch is cut.

    `loop` is the position of the scan over micro-batches, or -1 where the whole entry is one; then
    the stages' functions work on the entry's own inputs. `operands` maps inputs of the body to
    values of the entry, `results` the body's results to values. `works` are the stages' functions.
    """

    function: Function
    loop: int
    operands: Mapping[str, int]
    results: Mapping[str, int]
    works: Sequence[StageWork]


class Homes(NamedTuple):
    """Which ranks have what: `stages[rank]`, and the ranks that store each parameter."""

    axis: str
    stages: Sequence[Sequence[int]]
    parameters: Mapping[str, frozenset[int]]
    dims: frozenset[str]

    @property
    def everywhere(self) -> frozenset[int]:
        """All ranks."""
        return frozenset(range(len(self.stages)))


class Reach:
    """On which ranks each value of an entry is.

    A `term` is a scalar that only some ranks have a part of, to be summed over `ranks`; one in
    `resolved` is needed whole, and summed at once.
    """

    def __init__(self, step: Step, homes: Homes):
        self.step, self.homes = step, homes
        function = step.function
        self.ranks: list[frozenset[int]] = []
        self.own: set[int] = set()
        self.terms: set[int] = set()
        self.resolved: set[int] = set()
        for given in function.inputs:
            self._input(given.name.partition("#")[0])
        names = {value: name for name, value in step.results.items()}
        if step.loop < 0:
            self.ranks += [homes.everywhere] * (len(function.types) - len(function.inputs))
            return
        for at, op in enumerate(function.ops):
            for value in op.results:
                if at == step.loop:
                    self._input(names[value].removeprefix(GRADIENT))
                else:
                    self._result(op, value)
        self.resolved.update(self.terms.intersection(function.results))

    def _input(self, name: str) -> None:
        known = self.homes.parameters.get(name)
        if known is not None:
            self.own.add(len(self.ranks))
        self.ranks.append(self.homes.everywhere if known is None else known)

    def _result(self, op: Op, value: int) -> None:
        kinds = self.step.function.types
        terms = self.terms.intersection(op.operands)
        own = self.own.intersection(op.operands)
        ranks = self.homes.everywhere.intersection(*(self.ranks[v] for v in op.operands))
        if terms and isinstance(op.attrs, Add | AddN) and len(terms) == len(set(op.operands)):
            ranks = frozenset().union(*(self.ranks[v] for v in op.operands))
            self.terms.add(value)
        elif terms and isinstance(op.attrs, LINEAR):
            self.terms.add(value)
        else:
            self.resolved |= terms
            lost = self._lost_dims(op, value)
            if own and isinstance(op.attrs, ReduceSum) and not kinds[value].dims:
                self.terms.add(value)
                ranks = ranks if lost else ranks & {min(ranks)}
            elif own and lost:
                raise InternalError(f"{self.step.function.name}: {op.kind} takes layers together")
            elif own - terms:
                self.own.add(value)
            if terms:
                rest = [self.ranks[v] for v in op.operands if v not in terms]
                ranks = self.homes.everywhere.intersection(*rest)
        self.ranks.append(ranks)

    def _lost_dims(self, op: Op, value: int) -> bool:
        """Whether an op takes the layers of a cut stack together."""
        kinds = self.step.function.types
        have = {name for v in op.operands for name in kinds[v].names}
        return bool((have - set(kinds[value].names)) & self.homes.dims)


class RankStep:
    """Writes one rank's version of an entry."""

    def __init__(
        self,
        reach: Reach,
        rank: int,
        sizes: Sizes,
        signatures: Mapping[str, Signature],
        messages: Mapping[Message, int],
        row: Sequence[str],
        counts: Mapping[Message, int],
    ):
        self.reach, self.step, self.homes, self.rank = reach, reach.step, reach.homes, rank
        self.function = self.step.function
        self.messages, self.row, self.counts = messages, row, counts
        self.b = Builder(self.function.name, sizes, signatures)
        self.values: dict[int, int] = {}
        self.stages = self.homes.stages[rank]
        self.functions = [
            (f"{phase}{stage}", function)
            for stage in self.stages
            for phase, function in self.step.works[stage].functions.items()
        ]

    def here(self, value: int) -> bool:
        """Whether this rank has a value, or a term of it."""
        return self.rank in self.reach.ranks[value]

    def run(self) -> Function:
        """The entry."""
        function, wanted = self.function, self.wanted()
        needed = self.needed(list(wanted.values()))
        kept = ("param", "state")
        for number, given in enumerate(function.inputs):
            if number in needed or (given.role in kept and self.here(number)):
                self.values[number] = self.b.input(given.name, function.types[number], given.role)
        if self.step.loop < 0:
            self.pipeline()
        for at, op in enumerate(function.ops):
            self.b.path, self.b.span = op.path, op.span
            if at == self.step.loop:
                self.pipeline()
            elif needed.intersection(op.results) and self.step.loop >= 0:
                self.op(op)
        results = [self.values[value] for value in wanted.values()]
        return self.b.finish(results, list(wanted), function.span)

    def wanted(self) -> dict[str, int]:
        """The outputs that this rank gives."""
        pairs = zip(self.function.outputs, self.function.results, strict=True)
        return {
            name: value for name, value in pairs if value in self.reach.resolved or self.here(value)
        }

    def needed(self, wanted: list[int]) -> set[int]:
        """The values of the entry that this rank computes or takes."""
        found = {*wanted, *self.reach.resolved}
        given = {name for _, f in self.functions for name in (i.name for i in f.inputs)}
        pipeline = {value for name, value in self.step.operands.items() if name in given}
        if self.step.loop < 0:
            return found | pipeline
        for at in reversed(range(len(self.function.ops))):
            op = self.function.ops[at]
            if at == self.step.loop:
                found |= pipeline
            elif found.intersection(op.results) and any(self.here(v) for v in op.results):
                found.update(v for v in op.operands if self.here(v) or v in self.reach.resolved)
        return found

    def op(self, op: Op) -> None:
        """One op outside of the pipeline."""
        if isinstance(op.attrs, Iota) and op.attrs.dim.name in self.homes.dims:
            raise InternalError(
                f"{self.function.name}: layers are numbered outside of micro-batches"
            )
        (value, *_) = op.results
        if self.here(value):
            operands = [self.values[v] for v in op.operands if v in self.values]
            if len(operands) == len(op.operands):
                results = self.b.emit(op.attrs, *operands)
            elif len(operands) == 1:
                results = (operands[0],)
            else:
                results = self.b.emit(AddN() if len(operands) > 2 else Add(), *operands)
            self.values.update(zip(op.results, results, strict=True))
        if value in self.reach.resolved:
            everywhere = self.homes.everywhere
            self.resolve(value, self.function.types[value], self.here(value), everywhere)

    def resolve(self, value: int, kind: Type, has: bool, among: frozenset[int]) -> None:
        """The sum of what ranks have of a value, on all of `among`."""
        if has:
            open_value = self.b.one(Share((self.homes.axis,)), self.values[value])
        else:
            partial = merged(kind.partial, (self.homes.axis,))
            open_value = self.b.one(Fill(0.0, kind.dtype, kind.dims, partial))
        some = () if among == self.homes.everywhere else tuple(sorted(among))
        self.values[value] = self.b.one(AllReduce((self.homes.axis,), some), open_value)

    def pipeline(self) -> None:
        """The turns in the pipeline, and what comes of them."""
        given = {name for _, f in self.functions for name in (i.name for i in f.inputs)}
        made = {name for _, f in self.functions for name in f.outputs}
        carries = [name for name in self.step.results if name in made]
        kinds = self.body_kinds(carries)
        slices: list[str] = []
        shared: list[str] = []
        for name, value in self.step.operands.items():
            if name in given and name not in carries:
                (slices if self.sliced(value) else shared).append(name)
        operands = [self.b.zeros(kinds[name]) for name in carries]
        operands += [self.values[self.step.operands[name]] for name in (*slices, *shared)]
        attrs = self.attrs((*carries, *slices, *shared), len(carries), len(slices))
        if self.functions:
            found = self.b.emit(attrs, *operands)
            self.values.update(
                (self.step.results[name], value) for name, value in zip(carries, found, strict=True)
            )
        for name, value in self.step.results.items():
            self.outcome(name, value, name in carries)

    def outcome(self, name: str, value: int, made: bool) -> None:
        """A carry, summed over the ranks that share it."""
        parameter = name.removeprefix(GRADIENT)
        kind = self.function.types[value]
        if name == parameter or parameter not in self.homes.parameters:
            self.resolve(value, kind, made, self.homes.everywhere)
            return
        ranks = self.homes.parameters[parameter]
        stacked = bool(self.homes.dims & set(kind.names[:1]))
        if self.rank in ranks and (stacked or len(ranks) == 1):
            if not made:
                self.values[value] = self.b.zeros(kind)
        elif self.rank in ranks:
            self.b.path = parameter
            self.resolve(value, kind, made, ranks)

    def body_kinds(self, carries: Sequence[str]) -> dict[str, Type]:
        """The types of carries."""
        return {name: self.function.types[self.step.results[name]] for name in carries}

    def sliced(self, value: int) -> bool:
        """Whether a value has a position for each micro-batch."""
        return self.over != "" and self.function.types[value].names[:1] == (self.over,)

    @property
    def over(self) -> str:
        """The dim of micro-batches, or nothing."""
        if self.step.loop < 0:
            return ""
        attrs = self.function.ops[self.step.loop].attrs
        assert isinstance(attrs, Scan)
        return attrs.over

    def attrs(self, names: tuple[str, ...], carries: int, slices: int) -> Pipeline:
        """The op's attributes."""
        homes = [0] * len(self.step.works)
        for rank, stages in enumerate(self.homes.stages):
            for stage in stages:
                homes[stage] = rank
        takes: list[tuple[str, str]] = []
        gives: list[tuple[str, str]] = []
        buffers: list[int] = []
        rows: dict[str, int] = {}
        parts: list[tuple[str, str, int]] = []
        for stage in self.stages:
            work = self.step.works[stage]
            for port, message in work.takes.items():
                takes.append((f"{port}.{stage}", f"m{self.messages[message]}.{message.source}"))
            for port, message in work.gives.items():
                gives.append((f"{port}.{stage}", f"m{self.messages[message]}.{message.target}"))
                buffers.append(self.counts[message])
            for stretch in work.stretches:
                parts.append((stretch.part, stretch.whole, rows.get(stretch.whole, 0)))
                rows[stretch.whole] = rows.get(stretch.whole, 0) + stretch.size
        parts = [part for part in parts if part[0] != part[1]]
        return Pipeline(
            self.homes.axis,
            self.over,
            carries,
            slices,
            names,
            tuple(homes),
            self.rank,
            tuple((key, function.name) for key, function in self.functions),
            tuple(self.row),
            tuple(takes),
            tuple(gives),
            tuple(buffers),
            tuple(part for part, _, _ in parts),
            tuple(whole for _, whole, _ in parts),
            tuple(start for _, _, start in parts),
        )
