"""One sharded program cut into one program for each stage of a pipeline.

    func train(params, states, tokens: vocab[microbatches, batch, seq], ...)   scan over micro
    ->
    rank 0: func train(its params, its states, tokens)    pipeline{actions=[F0.0, F0.1, B0.0, ...]}
    rank 1: func train(its params, its states, targets)   pipeline{actions=[F1.0, B1.0, ...]}

Each rank of the pipeline axis has its own layers of the stacks, so in its program the stack's dim
is as large as that; `Parameter.layers` says which they are. The entries that are not cut into
micro-batches go through the stages once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from msgspec import structs

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Scan
from fllmc.ir.program import DimSize, Function, Parameter, Program
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.target import Target
from fllmc.ir.timetable import Kind, Timed, Timetable
from fllmc.passes.accumulate import MICROBATCHES
from fllmc.passes.inline import reachable
from fllmc.passes.schedule.choose import chosen, placements, quickest
from fllmc.passes.schedule.costs import Costs
from fllmc.passes.schedule.simulate import Simulation, simulate
from fllmc.passes.stages.body import Body, scan_attrs
from fllmc.passes.stages.costs import stage_costs, unit_costs
from fllmc.passes.stages.cut_body import Cutter, StageWork
from fllmc.passes.stages.cut_step import GRADIENT, Homes, RankStep, Reach, Step
from fllmc.passes.stages.directives import Asked
from fllmc.passes.stages.errors import TooManyStages
from fllmc.passes.stages.in_flight import buffer_counts
from fllmc.passes.stages.keep import Kept, Within, choices, keeping
from fllmc.passes.stages.split import Split, even_split
from fllmc.passes.stages.split_backward import Splitter
from fllmc.passes.step_equations import STATES


class Cut(NamedTuple):
    """The program of each rank of the pipeline axis, the order of work as it is simulated, and,
    where a budget asks for it, what each rank can keep."""

    programs: tuple[Program, ...]
    work: Simulation | None
    kept: tuple[Kept, ...] = ()

    @property
    def timeline(self) -> tuple[Timed, ...]:
        """The work of a step."""
        return self.work.timeline if self.work is not None else ()


def stage_programs(
    program: Program, asked: Asked, micros: int, target: Target, within: Within | None = None
) -> Cut:
    """A program cut as a schedule asks for, by times on a target, with what `within` says kept.

    Where the schedule leaves open how many stages a rank has, the step that takes least time.
    DiagnosticError where the numbers of ranks, chunks, layers and micro-batches do not go together.
    """
    ranks = program.mesh.extent((asked.axis,))
    known = within.homes if within is not None else ()
    return quickest(
        (known,) if known else placements(asked.order, ranks),
        lambda homes: placed(program, asked, micros, target, homes, within),
        lambda cut: cut.work.makespan if cut.work is not None else 0.0,
    )


def placed(
    program: Program,
    asked: Asked,
    micros: int,
    target: Target,
    homes: tuple[int, ...],
    within: Within | None,
) -> Cut:
    """A program cut into stages on these ranks."""

    def choose(costs: Costs) -> Simulation:
        return chosen(asked.order, max(homes) + 1, micros, costs, homes)

    halves = asked.order.kind in HALVING
    plan = Plan(asked.axis, asked.dims, homes, choose, target, halves, asked.shard.span, within)
    return cut_stages(program, plan)


HALVING: Final = ("zb_h1", "zb_v", "auto")
"""Orders of work in which gradients of weights may wait."""


class Plan(msgspec.Struct, frozen=True):
    """How to cut: the pipeline's axis, the dims of the stacks, the rank of each stage, the order of
    work for stages of given costs on a target, whether that has gradients of weights apart, and
    what ranks keep, if that is not all that the backward reads."""

    axis: str
    dims: tuple[str, ...]
    homes: tuple[int, ...]
    choose: Callable[[Costs], Simulation]
    target: Target
    halves: bool = False
    span: Span = NOWHERE
    within: Within | None = None

    @property
    def chunks(self) -> list[list[int]]:
        """The stages of each rank."""
        ranks = range(max(self.homes) + 1)
        return [[stage for stage, home in enumerate(self.homes) if home == r] for r in ranks]


def cut_stages(program: Program, plan: Plan) -> Cut:
    """The program of each rank of the pipeline axis."""
    bodies = {name: entry_body(program, name, plan) for name in program.entries}
    split = chosen_split(program, bodies, plan)
    names = part_names(split, bodies, plan.chunks)
    order: Simulation | None = None
    kept: tuple[Kept, ...] = ()
    steps: dict[str, Step] = {}
    made: dict[str, Function] = {}
    for name, (loop, body) in bodies.items():
        carries = carried(body.function, loop)
        cutter = Cutter(body, split, program.sizes, program.signatures, names, carries)
        works = cutter.cut()
        if loop >= 0:
            works, new, order, kept = ordered(program, plan, works, body)
            made |= new
        steps[name] = entry_step(program, name, loop, body, named(works, name, made))
    homes = parameter_homes(program, plan, steps, split, bodies)
    ranks = range(len(plan.chunks))
    table = order.timetable if order is not None else None
    programs = tuple(rank_program(program, table, steps, homes, rank, made) for rank in ranks)
    return Cut(programs, order, kept)


class Ordered(NamedTuple):
    """The stages' work, the functions made for it, its order, and what ranks can keep of it."""

    works: list[StageWork]
    made: dict[str, Function]
    order: Simulation
    kept: tuple[Kept, ...] = ()


def ordered(program: Program, plan: Plan, works: list[StageWork], body: Body) -> Ordered:
    """The stages, their backward in halves where the order of work wants it, and that order."""
    halves, made = in_halves(program, works, body) if plan.halves else (works, {})
    order = plan.choose(costs_of(with_functions(program, made), halves, plan))
    split = any(action.kind == "W" for row in order.timetable.rows for action in row)
    if plan.halves and not split:
        halves, made = works, {}
        whole = simulate(order.timetable, costs_of(program, works, plan))
        order = structs.replace(whole, bound=min(order.bound, whole.bubble))
    if plan.within is None:
        return Ordered(halves, made, order)
    rows, sums = order.timetable.rows, body.function.outputs
    kept = tuple(
        choices(program, works, own, row, sums, plan.within)
        for own, row in zip(plan.chunks, rows, strict=True)
    )
    if not plan.within.held:
        return Ordered(halves, made, order, kept)
    works, own = list(works), dict[str, Function]()
    for rank, held in enumerate(plan.within.held):
        keeping(kept[rank], held, works, own, plan.within.offload)
    known = with_functions(program, own)
    halves, made = in_halves(known, works, body) if split else (works, {})
    costs = costs_of(with_functions(known, made), halves, plan)
    return Ordered(halves, own | made, simulate(order.timetable, costs), kept)


def costs_of(program: Program, works: Sequence[StageWork], plan: Plan) -> Costs:
    """What the stages' actions cost."""
    return stage_costs(program, works, plan.target, plan.axis)


def in_halves(
    program: Program, works: Sequence[StageWork], body: Body
) -> tuple[list[StageWork], dict[str, Function]]:
    """The stages with their backward in halves, and the functions that these run."""
    functions = {f.name: f for f in program.functions}
    splitter = Splitter(functions, program.sizes, body.function.outputs)
    return [splitter.split(work) for work in works], splitter.made


def with_functions(program: Program, made: Mapping[str, Function]) -> Program:
    """The program with more functions."""
    return structs.replace(program, functions=(*program.functions, *made.values()))


def entry_body(program: Program, name: str, plan: Plan) -> tuple[int, Body]:
    """The position of an entry's scan over micro-batches and its body, or -1 and the entry."""
    function = program.function(name)
    for at, op in enumerate(function.ops):
        if isinstance(op.attrs, Scan) and op.attrs.over == MICROBATCHES:
            body = program.function(op.attrs.function)
            stop = op.attrs.carries + op.attrs.slices
            return at, Body(body, ("loss",), range(op.attrs.carries, stop), plan.dims, plan.span)
    data = [n for n, given in enumerate(function.inputs) if given.role == "data"]
    return -1, Body(function, function.outputs, data, plan.dims, plan.span)


def carried(function: Function, loop: int) -> dict[int, str]:
    """The sums that a micro-batch's function takes, by the name of what they become."""
    return dict(enumerate(function.outputs)) if loop >= 0 else {}


def chosen_split(program: Program, bodies: Mapping[str, tuple[int, Body]], plan: Plan) -> Split:
    """The split by the costs of a training step. DiagnosticError where there are too few layers."""
    _, body = next(iter(bodies.values()))
    groups, stacks = unit_costs(program, body, plan.target)
    units = len(groups) + sum(map(len, stacks))
    if units < len(plan.homes):
        raise DiagnosticError(TooManyStages(plan.span, len(plan.homes), units))
    return even_split(groups, stacks, plan.homes)


def part_names(
    split: Split, bodies: Mapping[str, tuple[int, Body]], chunks: Sequence[Sequence[int]]
) -> list[dict[str, str]]:
    """What each stack's dim is called in each stage's functions."""
    _, body = next(iter(bodies.values()))
    found: list[dict[str, str]] = [{} for _ in range(split.stages)]
    for stages in chunks:
        for at, ranges in zip(body.scans, split.layers, strict=True):
            over = scan_attrs(body.function.ops[at]).over
            own = [stage for stage in stages if ranges[stage][1]]
            for number, stage in enumerate(own):
                found[stage][over] = over if len(own) == 1 else f"{over}.part{number}"
    return found


def named(
    works: Sequence[StageWork],
    entry: str,
    made: dict[str, Function],
) -> list[StageWork]:
    """The stages' functions with names: equal ones are one, different ones are numbered."""
    words = {"F": "forward", "B": "backward", "I": "inputs", "W": "weights"}
    done: list[StageWork] = []
    for work in works:
        functions: dict[Kind, Function] = {}
        for phase, function in work.functions.items():
            wish = f"{entry}.{words[phase]}"
            count = 1
            name = wish
            while name in made and made[name] != structs.replace(function, name=name):
                count += 1
                name = f"{wish}.{count}"
            made[name] = functions[phase] = structs.replace(function, name=name)
        done.append(StageWork(functions, work.takes, work.gives, work.stretches))
    return done


def entry_step(
    program: Program, name: str, loop: int, body: Body, works: Sequence[StageWork]
) -> Step:
    """An entry with its cut functions."""
    function = program.function(name)
    inside = body.function
    if loop < 0:
        operands = {given.name: number for number, given in enumerate(function.inputs)}
        results = dict(zip(function.outputs, function.results, strict=True))
        return Step(function, loop, operands, results, works)
    op = function.ops[loop]
    operands = {given.name: value for given, value in zip(inside.inputs, op.operands, strict=True)}
    for output in inside.outputs:
        operands.pop(output, None)
    results = dict(zip(inside.outputs, op.results, strict=True))
    return Step(function, loop, operands, results, works)


def parameter_homes(
    program: Program,
    plan: Plan,
    steps: Mapping[str, Step],
    split: Split,
    bodies: Mapping[str, tuple[int, Body]],
) -> Homes:
    """The ranks that store each parameter: those that use it, or have a part of its gradient."""
    chunks = plan.chunks
    ranks: dict[str, set[int]] = {parameter.name: set() for parameter in program.parameters}
    for step in steps.values():
        for rank, stages in enumerate(chunks):
            for name in uses(step, stages):
                if name in ranks:
                    ranks[name].add(rank)
    _, body = next(iter(bodies.values()))
    for parameter in program.parameters:
        if parameter.stack in plan.dims:
            ranks[parameter.name] = {
                rank
                for rank, stages in enumerate(chunks)
                for at, layers in zip(body.scans, split.layers, strict=True)
                if scan_attrs(body.function.ops[at]).over == parameter.stack
                for stage in stages
                if layers[stage][1]
            }
    homes = {name: frozenset(found or {0}) for name, found in ranks.items()}
    return Homes(plan.axis, chunks, homes, frozenset(plan.dims))


def uses(step: Step, stages: Sequence[int]) -> set[str]:
    """Parameters that stages read, and those whose gradients they have a part of."""
    found: set[str] = set()
    values: set[int] = set()
    for stage in stages:
        for function in step.works[stage].functions.values():
            for given in function.inputs:
                if given.name in step.operands:
                    values.add(step.operands[given.name])
            found.update(n.removeprefix(GRADIENT) for n in function.outputs if n in step.results)
    function = step.function
    for op in reversed(function.ops[: max(step.loop, 0)]):
        if values.intersection(op.results):
            values.update(op.operands)
    found.update(function.inputs[v].name for v in values if v < len(function.inputs))
    return found


def rank_program(
    program: Program,
    table: Timetable | None,
    steps: Mapping[str, Step],
    homes: Homes,
    rank: int,
    made: Mapping[str, Function],
) -> Program:
    """The program of one rank."""
    layers: dict[str, list[int]] = {}
    sizes = {dim.name: dim.size for dim in program.dims}
    for stage in homes.stages[rank]:
        for stretch in next(iter(steps.values())).works[stage].stretches:
            layers.setdefault(stretch.whole, []).extend(
                range(stretch.first, stretch.first + stretch.size)
            )
            sizes[stretch.part] = stretch.size
    sizes |= {dim: len(own) for dim, own in layers.items()}
    whole = structs.replace(
        program, dims=tuple(DimSize(name, size) for name, size in sizes.items())
    )
    signatures = {**program.signatures, **{n: f.signature for n, f in made.items()}}
    entries: list[Function] = []
    for step in steps.values():
        messages = {
            message: number
            for number, message in enumerate(
                sorted({m for work in step.works for m in work.gives.values()})
            )
        }
        rows = [plan_row(step, table, own, at) for at, own in enumerate(homes.stages)]
        counts = buffer_counts(step.works, rows)
        reach = Reach(step, homes)
        made_step = RankStep(reach, rank, whole.sizes, signatures, messages, rows[rank], counts)
        entries.append(made_step.run())
    parameters = tuple(
        own_layers(parameter, layers)
        for parameter in program.parameters
        if rank in homes.parameters[parameter.name]
    )
    functions = [f for f in program.functions if f.name not in program.entries]
    whole = structs.replace(
        whole, functions=(*entries, *functions, *made.values()), parameters=parameters
    )
    used = reachable(whole, (*program.entries, STATES))
    whole = whole.with_functions(drop=tuple(f.name for f in whole.functions if f.name not in used))
    return whole


def own_layers(parameter: Parameter, layers: Mapping[str, Sequence[int]]) -> Parameter:
    """The parameter with the layers that a rank has of it."""
    own = layers.get(parameter.stack)
    return structs.replace(parameter, layers=tuple(own)) if own is not None else parameter


def plan_row(step: Step, table: Timetable | None, stages: Sequence[int], rank: int) -> list[str]:
    """The rank's actions that have something to do; for an entry without micro-batches, forward."""
    if step.loop < 0 or table is None:
        return [f"F{stage}.0" for stage in stages if "F" in step.works[stage].functions]
    found: list[str] = []
    for action in table.rows[rank]:
        has = step.works[action.stage].functions
        kinds = {"F": "F", "B": "B", "I": "I" if "I" in has else "B", "W": "W"}[action.kind]
        if action.kind == "B" and "I" in has:
            kinds = "IW"
        found += [f"{kind}{action.stage}.{action.micro}" for kind in kinds if kind in has]
    return found
