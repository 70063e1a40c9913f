"""One micro-batch's work cut into functions: for each stage one forward and one backward.

What a stage makes and uses itself later is `kept0, kept1, ...` there; what another stage needs
is sent as its `out0, ...` and arrives as that one's `in0, ...`. Inputs of the body keep their
names; a sum and what it becomes both have the name of the result.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import AnyAttrs, Iota, Scan, Signature
from fllmc.ir.program import Function
from fllmc.ir.timetable import Kind
from fllmc.ir.types import Dim, Sizes, Type
from fllmc.passes.stages.body import Body, Phase, Term
from fllmc.passes.stages.split import Split


class Place(NamedTuple):
    """A stage's forward or backward."""

    stage: int
    phase: Phase


class Key(NamedTuple):
    """A value of the body; or, with a `stage`, what a stack's carry is after that stage."""

    value: int
    stage: int = -1


class Message(NamedTuple):
    """A value that one stage's function gives and another stage takes."""

    key: Key
    source: int
    target: int


class Stretch(NamedTuple):
    """A stage's layers of a stack: the dim that they have in its functions, and the first."""

    whole: str
    part: str
    first: int
    size: int


class StageWork(msgspec.Struct):
    """A stage's functions by kind, and its messages by the names that they have in these."""

    functions: dict[Kind, Function]
    takes: dict[str, Message]
    gives: dict[str, Message]
    stretches: tuple[Stretch, ...]


class Cutter:
    """Cuts one body. `part_dims[stage]`: what cut dims are called in that stage's functions."""

    def __init__(
        self,
        body: Body,
        split: Split,
        sizes: Sizes,
        signatures: Mapping[str, Signature],
        part_dims: Sequence[Mapping[str, str]],
        carries: Mapping[int, str],
    ):
        self.body, self.split, self.sizes = body, split, sizes
        self.signatures, self.part_dims, self.carries = signatures, part_dims, carries
        self.function = body.function
        self.ops: dict[Place, set[int]] = {}
        self.seen: set[tuple[int, Place]] = set()
        self.kept: dict[int, dict[Key, None]] = {}
        self.messages: dict[Message, None] = {}
        self.inputs: dict[tuple[int, Key], str] = {}
        self.results: dict[Place, dict[str, list[Term]]] = {}
        self.types: dict[tuple[int, Key], Type] = {}

    def stretches(self, stage: int) -> tuple[Stretch, ...]:
        """The layers of each stack that a stage has."""
        found: list[Stretch] = []
        for at, ranges in zip(self.body.scans, self.split.layers, strict=True):
            attrs = self.function.ops[at].attrs
            assert isinstance(attrs, Scan)
            first, count = ranges[stage]
            if count:
                part = self.part_dims[stage][attrs.over]
                found.append(Stretch(attrs.over, part, first, count))
        return tuple(found)

    def pieces(self, stack: int, phase: Phase) -> list[int]:
        """The stages that have layers of a stack, in the order of the phase."""
        found = [stage for stage, (_, count) in enumerate(self.split.layers[stack]) if count]
        return found if phase == "F" else found[::-1]

    def home(self, at: int, stage: int) -> tuple[Place, int]:
        """Where an op that is not free is done for a user on `stage`; the stage of its key."""
        spot = self.body.spots[at]
        if spot.stacked:
            return Place(stage, spot.phase), -1
        if spot.stack >= 0:
            last = self.pieces(spot.stack, spot.phase)[-1]
            return Place(last, spot.phase), last
        return Place(self.split.groups[spot.group], spot.phase), -1

    def want(self, value: int, place: Place) -> None:
        """Have a value at hand in a place."""
        if (value, place) in self.seen:
            return
        self.seen.add((value, place))
        at = self.body.makers.get(value)
        if at is None:
            return
        spot = self.body.spots[at]
        if spot.free:
            self.do(at, place)
            return
        if spot.stack >= 0 and self.body.stacked(value):
            home, part = Place(place.stage, spot.phase), -1
        else:
            home, part = self.home(at, place.stage)
        self.do(at, home)
        self.bring(Key(value, part), home, place)

    def do(self, at: int, place: Place) -> None:
        """Have an op done in a place, with what it needs."""
        done = self.ops.setdefault(place, set())
        if at in done:
            return
        done.add(at)
        op, spot = self.function.ops[at], self.body.spots[at]
        carries = 0
        if spot.stack >= 0:
            assert isinstance(op.attrs, Scan)
            stages = self.pieces(spot.stack, spot.phase)
            before = stages.index(place.stage) - 1
            if before >= 0:
                carries = op.attrs.carries
                source = Place(stages[before], spot.phase)
                self.do(at, source)
                for value in op.results[:carries]:
                    self.bring(Key(value, source.stage), source, place)
        for value in op.operands[carries:]:
            self.want(value, place)

    def bring(self, key: Key, source: Place, target: Place) -> None:
        """Let a place have what another one makes."""
        if source == target:
            return
        if source.stage == target.stage:
            self.kept.setdefault(source.stage, {})[key] = None
        else:
            self.messages[Message(key, source.stage, target.stage)] = None

    def want_result(self, name: str, value: int) -> None:
        """Have a result of the body made, in parts where several stages have some of it."""
        if self.body.stacked(value):
            at = self.body.makers[value]
            spot = self.body.spots[at]
            stack = self._stack_of(value)
            for stage in self.pieces(stack, spot.phase):
                place = Place(stage, spot.phase)
                self.want(value, place)
                self._result(place, name, [Term(value, ())])
            return
        by_place: dict[Place, list[Term]] = {}
        for term in self.body.terms(value):
            at = self.body.makers.get(term.value)
            if at is None:
                continue
            if self.body.spots[at].free:
                place = Place(self.split.stages - 1, self.body.spots[at].phase)
            else:
                place, _ = self.home(at, -1)
            by_place.setdefault(place, []).append(term)
            self.want(term.value, place)
        for place, terms in by_place.items():
            self._result(place, name, terms)

    def _result(self, place: Place, name: str, terms: list[Term]) -> None:
        self.results.setdefault(place, {})[name] = terms

    def _stack_of(self, value: int) -> int:
        (dim,) = self.function.types[value].names[:1]
        for number, at in enumerate(self.body.scans):
            attrs = self.function.ops[at].attrs
            if isinstance(attrs, Scan) and attrs.over == dim:
                return number
        raise InternalError(f"{self.function.name}: no stack over {dim}")

    def cut(self) -> list[StageWork]:
        """The functions of every stage."""
        for name, value in zip(self.function.outputs, self.function.results, strict=True):
            self.want_result(name, value)
        works = [
            StageWork(
                {}, self._ports(stage, "in"), self._ports(stage, "out"), self.stretches(stage)
            )
            for stage in range(self.split.stages)
        ]
        order = [Place(stage, "F") for stage in range(self.split.stages)]
        order += [Place(stage, "B") for stage in reversed(range(self.split.stages))]
        for place in order:
            if self.ops.get(place) or self.results.get(place):
                works[place.stage].functions[place.phase] = Emitter(self, works, place).run()
        return works

    def _ports(self, stage: int, word: str) -> dict[str, Message]:
        own = [m for m in self.messages if stage == (m.target if word == "in" else m.source)]
        own.sort(key=lambda m: (self.body.makers[m.key.value] not in self.body.ahead, m))
        return {f"{word}{number}": message for number, message in enumerate(own)}


class Emitter:
    """Writes one function."""

    def __init__(self, cutter: Cutter, works: Sequence[StageWork], place: Place):
        self.cutter, self.place, self.work = cutter, place, works[place.stage]
        self.body, self.function = cutter.body, cutter.function
        self.b = Builder("", cutter.sizes, cutter.signatures)
        self.values: dict[Key, int] = {}
        self.dims = cutter.part_dims[place.stage]
        self.ports = {m.key: name for name, m in self.work.takes.items()}
        sent = {message.key: name for name, message in reversed(self.work.gives.items())}
        kept = sorted(key for key in cutter.kept.get(place.stage, {}) if key not in sent)
        self.kept = sent | {key: f"kept{number}" for number, key in enumerate(kept)}
        self.given: set[int] = set()

    def run(self) -> Function:
        """The function, its results the messages, what is kept, and carries."""
        for at in sorted(self.cutter.ops.get(self.place, ())):
            self.op(at)
        names = [(name, m.key) for name, m in self.work.gives.items()]
        names += [(name, key) for key, name in self.kept.items() if name.startswith("kept")]
        results: dict[str, int] = {}
        for name, key in names:
            value = self.values.get(key)
            if value is not None and value not in self.given:
                results[name] = value
                self.cutter.types[self.place.stage, key] = self.b.types[value]
        for name, terms in self.cutter.results.get(self.place, {}).items():
            results[name] = self.total(name, terms)
        return self.b.finish(list(results.values()), list(results), self.function.span)

    def op(self, at: int) -> None:
        """One op of the body, over this stage's layers."""
        op, spot = self.function.ops[at], self.body.spots[at]
        self.b.path, self.b.span = op.path, op.span
        carries, part = 0, -1
        operands: list[int] = []
        if spot.stack >= 0:
            assert isinstance(op.attrs, Scan)
            part = self.place.stage
            stages = self.cutter.pieces(spot.stack, spot.phase)
            before = stages.index(part) - 1
            if before >= 0:
                carries = op.attrs.carries
                keys = [Key(value, stages[before]) for value in op.results[:carries]]
                operands = [self.get(key) for key in keys]
        operands += [self.get(self.key(value)) for value in op.operands[carries:]]
        self.b.path, self.b.span = op.path, op.span
        results = self.b.emit(self.attrs(op.attrs), *operands)
        for value, number in zip(op.results, results, strict=True):
            own = part >= 0 and not self.body.stacked(value)
            self.values[Key(value, part if own else -1)] = number

    def key(self, value: int) -> Key:
        """The key under which a value is known here."""
        at = self.body.makers.get(value)
        if at is None or self.body.spots[at].stack < 0 or self.body.stacked(value):
            return Key(value)
        return Key(value, self.cutter.home(at, self.place.stage)[1])

    def get(self, key: Key) -> int:
        """The number of a value, which becomes an input where it is not made here."""
        if key not in self.values:
            self.values[key] = self.input(key)
            self.given.add(self.values[key])
        return self.values[key]

    def input(self, key: Key) -> int:
        """A new input."""
        if key.value < len(self.function.inputs):
            given, kind = self.function.inputs[key.value], self.function.types[key.value]
            name = self.cutter.carries.get(key.value, given.name)
            return self.b.input(name, self.kind(kind), given.role)
        if key in self.ports:
            message = self.work.takes[self.ports[key]]
            return self.b.input(self.ports[key], self.cutter.types[message.source, key])
        if key in self.kept:
            kind = self.cutter.types[self.place.stage, key]
            return self.b.input(self.kept[key], kind)
        raise InternalError(f"{self.function.name}: %{key.value} is not at hand in {self.place}")

    def kind(self, kind: Type) -> Type:
        """A type of the body in this stage's dims."""
        return kind.placed(Dim(self.dims.get(d.name, d.name), d.axes) for d in kind.dims)

    def attrs(self, attrs: AnyAttrs) -> AnyAttrs:
        """Attributes of an op of the body in this stage's dims."""
        if isinstance(attrs, Iota) and attrs.dim.name in self.body.dims:
            stretch = next(s for s in self.work.stretches if s.whole == attrs.dim.name)
            if (stretch.part, stretch.first) == (attrs.dim.name, 0):
                return attrs
            return Iota(Dim(stretch.part), stretch.first, attrs.dim.name)
        changed = {
            name: renamed(getattr(attrs, name), self.dims)
            for name in attrs.__struct_fields__
            if name != "function"
        }
        changed = {name: new for name, new in changed.items() if new != getattr(attrs, name)}
        return structs.replace(attrs, **changed) if changed else attrs

    def total(self, name: str, terms: Sequence[Term]) -> int:
        """A result: its one term, or the sum so far and all terms that this stage has."""
        if len(terms) == 1 and not terms[0].through and self.whole(name, terms[0].value):
            return self.get(self.key(terms[0].value))
        start = next(number for number, carry in self.cutter.carries.items() if carry == name)
        total = self.get(Key(start))
        for term in terms:
            value = self.get(self.key(term.value))
            for at in term.through:
                op = self.function.ops[at]
                self.b.path, self.b.span = op.path, op.span
                value = self.b.one(self.attrs(op.attrs), value)
            total = self.b.add(total, value)
        return total

    def whole(self, name: str, value: int) -> bool:
        """Whether a value is the body's whole result of that name."""
        return self.function.results[self.function.outputs.index(name)] == value


def renamed(held: Any, dims: Mapping[str, str]) -> Any:
    """An attribute with dims renamed in it."""
    if isinstance(held, str):
        return dims.get(held, held)
    if isinstance(held, Dim):
        return Dim(dims.get(held.name, held.name), held.axes)
    if isinstance(held, tuple):
        items: tuple[Any, ...] = held
        return tuple(renamed(item, dims) for item in items)
    return held
