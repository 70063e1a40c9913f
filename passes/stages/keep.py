"""What each rank of a pipeline keeps of a micro-batch, under a budget of its own.

    forward: (in0) -> (out0, kept0, kept1)             a scan over its layers
    backward: (kept0, kept1, in1) -> (out1, grads)     a scan back over them
    ->
    stage: (in0, in1) -> (out0, out1, grads)           both scans, what is kept between them
    -> with less kept ->
    forward: (in0) -> (out0, kept0), backward: (kept0, in1) -> (out1, grads)

A rank keeps as many micro-batches at once as its row of the timetable has in flight, so early ranks
may have to compute again what later ones keep. What waits in host memory does so for each of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Input, Op, Program
from fllmc.ir.settings import Offload, Recompute
from fllmc.ir.target import Target
from fllmc.ir.timetable import Action, Kind
from fllmc.passes.budget_choice import Held, Instance
from fllmc.passes.naming import unique
from fllmc.passes.offload import by_directives
from fllmc.passes.recompute_budget import Room, Whole, beside, everything, held_by
from fllmc.passes.recompute_policy import Policy
from fllmc.passes.stages.costs import of_stage
from fllmc.passes.stages.cut_body import StageWork


class Within(msgspec.Struct, frozen=True):
    """That each rank keeps what is `held` of its values; all of them where nothing is said.

    What is held belongs to stages on the ranks `homes`. A rank has `host` bytes of host memory in
    which values may wait, as those must that `offload` selects; with `beside` copies run beside
    other work.
    """

    selectors: tuple[Recompute, ...]
    target: Target
    homes: tuple[int, ...] = ()
    held: tuple[Held, ...] = ()
    host: int = 0
    offload: tuple[Offload, ...] = ()
    beside: bool = False

    def room(self, in_flight: int) -> Room:
        """What a stage with so many micro-batches in flight can choose from."""
        return Room(0, in_flight, self.target, self.host, self.offload, self.beside)


def in_flight(row: Sequence[Action], stage: int) -> int:
    """The most micro-batches of which a stage keeps something at once, by its rank's actions."""
    own = [action for action in row if action.stage == stage]
    last = "W" if any(action.kind == "W" for action in own) else "I"
    now = most = 0
    for action in own:
        now += action.kind == "F"
        most = max(most, now)
        now -= action.kind in ("B", last)
    return most


class Stage(NamedTuple):
    """A stage's work as one function of a program, whose `first` ops are the forward's.

    Its results are those of the forward, `given` of them, then those of the backward. `apart` names
    the inputs that come of other stages or of other micro-batches.
    """

    work: StageWork
    program: Program
    name: str
    first: int
    given: int
    apart: frozenset[str]

    @property
    def function(self) -> Function:
        """Both halves."""
        return self.program.function(self.name)


def joined(program: Program, work: StageWork, sums: Sequence[str]) -> Stage | None:
    """A stage's forward and backward as one function; None where it lacks either.

    `sums` are names of what is added up over micro-batches. What both halves make for themselves
    is made once.
    """
    if "F" not in work.functions or "B" not in work.functions:
        return None
    program = of_stage(program, work)
    name = unique("stage", program.signatures)
    b = Builder(name, program.sizes, program.signatures)
    encode = msgspec.msgpack.Encoder().encode
    made: dict[tuple[bytes, tuple[int, ...]], tuple[int, ...]] = {}
    apart = frozenset(sums) | work.takes.keys()
    sources: dict[int, frozenset[str]] = {}
    known: dict[str, int] = {}
    results: dict[str, int] = {}
    first = given = 0
    for half in (work.functions["F"], work.functions["B"]):
        mapping: dict[int, int] = {}
        for value, each in enumerate(half.inputs):
            if each.name not in known:
                known[each.name] = b.input(each.name, half.types[value], each.role)
                sources[known[each.name]] = source_of(each, apart)
            mapping[value] = known[each.name]
        for op in half.ops:
            operands = tuple(mapping[value] for value in op.operands)
            key = (encode(op.attrs), operands)
            source = frozenset[str]().union(*(sources[value] for value in operands))
            if key not in made or not is_free(source):
                b.path, b.span = op.path, op.span
                made[key] = b.emit(op.attrs, *operands)
                sources.update(dict.fromkeys(made[key], source))
            mapping.update(zip(op.results, made[key], strict=True))
        for output, value in zip(half.outputs, half.results, strict=True):
            if output in work.gives or output in sums:
                results[output] = mapping[value]
            if output not in sums:
                known[output] = mapping[value]
        if not first:
            first, given = len(b.ops), len(results)
    function = b.finish(list(results.values()), list(results), work.functions["F"].span)
    whole = structs.replace(program, functions=(*program.functions, function), entries=(name,))
    return Stage(work, whole, name, first, given, apart)


def source_of(given: Input, apart: frozenset[str]) -> frozenset[str]:
    """What an input of a stage's function is: of parameters, of the micro-batch, or from afar."""
    if given.role == "value":
        return frozenset({"afar" if given.name in apart else "data"})
    return frozenset({given.role})


def is_free(source: frozenset[str]) -> bool:
    """Whether both halves make for themselves what comes of these: parameters or data alone."""
    return source <= {"param", "host"} or source <= {"data", "host"}


class Kept(NamedTuple):
    """What a rank can keep: its stages' choices as one, with the stages whose values they are."""

    whole: Whole
    stages: tuple[tuple[int, Stage], ...]
    in_flight: tuple[int, ...]


def choices(
    program: Program,
    works: Sequence[StageWork],
    own: Sequence[int],
    row: Sequence[Action],
    sums: Sequence[str],
    within: Within,
) -> Kept:
    """What the rank with these stages can keep, at as many micro-batches as are in flight."""
    policy = Policy(within.selectors, cheap=False)
    whole = Whole((), Instance((), (), (), (), within.host))
    stages: list[tuple[int, Stage]] = []
    for number in own:
        stage = joined(program, works[number], sums)
        if stage is None:
            continue
        found = everything(stage.program, policy, within.room(in_flight(row, number)))
        first = len(whole.instance.costs)
        parts = tuple(structs.replace(part, first=part.first + first) for part in found.parts)
        whole = Whole(whole.parts + parts, beside(whole.instance, found.instance))
        stages += [(number, stage) for _ in parts]
    return Kept(whole, tuple(stages), tuple(in_flight(row, number) for number in own))


def keeping(
    kept: Kept,
    held: Held,
    works: list[StageWork],
    made: dict[str, Function],
    offload: tuple[Offload, ...],
) -> None:
    """Let the rank keep what is held: its works, and the functions that they run, by name.

    What is kept and selected by `offload` waits in host memory, whether there was a choice or not.
    """
    changed: dict[int, Stage] = {}
    for at, (number, stage) in enumerate(kept.stages):
        now = changed.get(number, stage)
        part, own = kept.whole.parts[at], kept.whole.own(at, held)
        changed[number] = now._replace(program=held_by(now.program, part, own))
    for number, stage in changed.items():
        stage = stage._replace(program=by_directives(stage.program, offload)[0])
        works[number] = parted(named(stage, dict(kept.stages)[number].program, made))


def named(stage: Stage, before: Program, made: dict[str, Function]) -> Stage:
    """The stage with its new functions among those made: equal ones are one."""
    old = {function.name for function in before.functions}
    names: dict[str, str] = {}
    for function in stage.program.functions:
        if function.name in old and function == before.function(function.name):
            continue
        if function.name != stage.name:
            count, name = 1, function.name
            while name in (old | made.keys()) and made.get(name) != structs.replace(
                function, name=name
            ):
                count += 1
                name = f"{function.name}.{count}"
            made[name] = structs.replace(function, name=name)
            names[function.name] = name
    ops = tuple(calling(op, names) for op in stage.function.ops)
    function = structs.replace(stage.function, ops=ops)
    others = [f for f in stage.program.functions if f.name != stage.name and f.name not in names]
    functions = (*others, *(made[name] for name in names.values()), function)
    return stage._replace(program=structs.replace(stage.program, functions=functions))


def calling(op: Op, names: dict[str, str]) -> Op:
    """The op with the function that it runs called anew."""
    if isinstance(op.attrs, Scan) and op.attrs.function in names:
        attrs = structs.replace(op.attrs, function=names[op.attrs.function])
        return structs.replace(op, attrs=attrs)
    return op


def parted(stage: Stage) -> StageWork:
    """The stage's work in two functions again, with what the backward takes of the forward kept."""
    function, work = stage.function, stage.work
    forward, backward = work.functions["F"], work.functions["B"]
    outputs = dict(zip(function.outputs[: stage.given], function.results, strict=False))
    sent = {value: name for name, value in outputs.items() if name in work.gives}
    half = Half(stage, range(stage.first, len(function.ops)), sent)
    later = dict(zip(function.outputs[stage.given :], function.results[stage.given :], strict=True))
    after = half.run(later, backward)
    before = Half(stage, range(stage.first), {}).run(outputs | half.kept, forward)
    functions: dict[Kind, Function] = {**work.functions, "F": before, "B": after}
    return StageWork(functions, work.takes, work.gives, work.stretches)


class Half:
    """Writes the forward or the backward of a stage that is in one function.

    `kept` are values that it takes of the other half, by the names under which they are kept; what
    is `sent` anyway is taken by that name.
    """

    def __init__(self, stage: Stage, own: range, sent: dict[int, str]) -> None:
        self.function, self.own, self.sent = stage.function, own, sent
        self.b = Builder("", stage.program.sizes, stage.program.signatures)
        self.makers = {v: at for at, op in enumerate(self.function.ops) for v in op.results}
        self.free = free_values(self.function, stage.apart)
        self.values: dict[int, int] = {}
        self.kept: dict[str, int] = {}

    def run(self, results: dict[str, int], old: Function) -> Function:
        """The function that gives these results."""
        for at in self.own:
            self.op(at)
        found = [self.get(value) for value in results.values()]
        function = self.b.finish(found, list(results), old.span)
        return structs.replace(function, name=old.name)

    def op(self, at: int) -> None:
        """One op, with what it takes."""
        op = self.function.ops[at]
        operands = [self.get(value) for value in op.operands]
        self.b.path, self.b.span = op.path, op.span
        self.values.update(zip(op.results, self.b.emit(op.attrs, *operands), strict=True))

    def get(self, value: int) -> int:
        """The number of a value: made here, taken by name, or kept by the other half."""
        if value not in self.values:
            if value < len(self.function.inputs):
                given = self.function.inputs[value]
                self.values[value] = self.b.input(
                    given.name, self.function.types[value], given.role
                )
            elif value in self.free:
                self.op(self.makers[value])
            else:
                name = self.sent.get(value) or f"kept{len(self.kept)}"
                if value not in self.sent:
                    self.kept[name] = value
                self.values[value] = self.b.input(name, self.function.types[value])
        return self.values[value]


def free_values(function: Function, apart: frozenset[str]) -> set[int]:
    """The values that both halves of a stage make for themselves."""
    sources = [source_of(given, apart) for given in function.inputs]
    for op in function.ops:
        found = frozenset[str]().union(*(sources[value] for value in op.operands))
        sources += [found for _ in op.results]
    return {value for value, found in enumerate(sources) if is_free(found)}
