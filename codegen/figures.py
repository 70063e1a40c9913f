"""The figures of a plan: parameters, bytes by category, traffic and floating-point operations.

All of them follow from types alone, are exact, and speak of one rank and one call of an entry.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from fllmc.codegen.timeline import timeline
from fllmc.ir.coded import value_elements
from fllmc.ir.flops import op_flops
from fllmc.ir.plan import Plan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Sizes
from fllmc.ir.walk import calls_of


class Parameters(msgspec.Struct, frozen=True):
    """Elements of all parameter tensors of the model, whole, and of those that are trained."""

    total: int
    trained: int


class Memory(msgspec.Struct, frozen=True):
    """Bytes of one rank's arena. `working` is the frame of the entry that needs most: activations,
    gradients and buffers. `least` is the most bytes alive at once, below which no layout can go."""

    parameters: int
    optimizer: int
    data: int
    working: int
    arena: int
    least: int


class Traffic(msgspec.Struct, frozen=True):
    """Collectives of one kind over the same axes: calls and bytes in one call of the entry."""

    kind: str
    axes: tuple[str, ...]
    calls: int
    bytes: int


class StageMemory(msgspec.Struct, frozen=True):
    """Bytes of a rank at a position of the pipeline: parts of the arena, and all of it."""

    position: int
    parameters: int
    optimizer: int
    working: int
    arena: int


class Updates(msgspec.Struct, frozen=True):
    """Parameter tensors that a step updates, and the kernels in which it does."""

    parameters: int
    kernels: int


def parameters(*programs: Program) -> Parameters:
    """How many parameters there are in a program, or in those of a pipeline's stages together."""
    seen: set[str] = set()
    counted: list[tuple[int, bool]] = []
    for program in programs:
        sizes = Sizes(program.sizes.dims)
        for parameter in program.parameters:
            if parameter.layers or parameter.name not in seen:  # stages have layers of their own
                count = value_elements(parameter, sizes)
                counted.append((count, parameter.trainable))
                seen.add(parameter.name)
    return Parameters(sum(n for n, _ in counted), sum(n for n, trained in counted if trained))


def memory(plan: Plan) -> Memory:
    """The arena by category."""
    roles = {"param": 0, "state": 0, "data": 0, "output": 0}
    for stored in plan.stored:
        roles[stored.role] += stored.bytes
    frames = [plan.frame(entry) for entry in plan.program.entries]
    padding = plan.frame_base - sum(roles.values())
    return Memory(
        parameters=roles["param"],
        optimizer=roles["state"],
        data=roles["data"] + roles["output"] + padding,
        working=max((frame.bytes for frame in frames), default=0),
        arena=plan.arena_bytes,
        least=max(timeline(plan, entry).peak.total for entry in plan.program.entries),
    )


def stage_memory(plan: Plan) -> tuple[StageMemory, ...]:
    """The memory of a rank of each pipeline stage, by position; of one where there are none."""
    found: list[StageMemory] = []
    for position, stage in enumerate(plan.by_stage):
        sizes = dict.fromkeys(("param", "state", "data", "output"), 0)
        for stored in stage.stored:
            sizes[stored.role] += stored.bytes
        working = stage.arena_bytes - stage.frame_base
        found.append(
            StageMemory(position, sizes["param"], sizes["state"], working, stage.arena_bytes)
        )
    return tuple(found)


def traffic(plan: Plan, entry: str) -> tuple[Traffic, ...]:
    """What the entry moves, by kind and axes, most bytes first."""
    found: dict[tuple[str, tuple[str, ...]], tuple[int, int]] = {}
    for each in plan.collectives:
        if each.entry == entry:
            calls, moved = found.get((each.kind, each.axes), (0, 0))
            found[each.kind, each.axes] = calls + each.calls, moved + each.bytes * each.calls
    rows = [Traffic(*key, *counts) for key, counts in found.items()]
    return tuple(sorted(rows, key=lambda row: (-row.bytes, row.kind, row.axes)))


def updates(plan: Plan, entry: str) -> Updates:
    """The parameters that the entry steps, and in how many runs of elementwise work."""
    function = plan.program.function(entry)
    names = {given.name for given in function.inputs if given.role == "param"}
    pairs = zip(function.outputs, function.results, strict=True)
    stepped = {value for output, value in pairs if output in names}
    return Updates(len(stepped), sum(bool(stepped & set(op.results)) for op in function.ops))


def operations(plan: Plan, entry: str) -> int:
    """Floating-point operations of the entry's contractions and attentions."""
    sizes = plan.program.sizes
    return sum(times * op_flops(f, op, sizes) for f, op, times in executed(plan.program, entry))


def executed(program: Program, entry: str, times: int = 1) -> Iterator[tuple[Function, Op, int]]:
    """Every op that a call of the function runs, and how many times."""
    function = program.function(entry)
    for op in function.ops:
        yield function, op, times
        for callee, turns in calls_of(op, program.sizes):
            yield from executed(program, callee, times * turns)
