"""Stages of a pipeline make the same calls where they meet; whatever differs shows."""

from __future__ import annotations

from itertools import pairwise

import msgspec
import pytest

from fllmc.codegen.meetings import Meeting, meeting_faults, meetings
from fllmc.ir.ops import COLLECTIVES
from fllmc.ir.program import Program
from fllmc.ir.settings import Pipeline as Order
from fllmc.ir.settings import Shard
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import Asked
from tests.oracle.small_specs import small_spec
from tests.passes.pipelined import CPU, sharded

STAGES = 3


@pytest.fixture(scope="module")
def stages() -> list[Program]:
    """A tied parameter and a clipped norm: sums among two of the stages and among all."""
    program = sharded(small_spec("gpt", "f64", 8), Mesh((Axis("pipe", STAGES),)))
    asked = Asked("pipe", ("layers",), Order("1f1b"), Shard(("layers",), ("pipe",)))
    return list(stage_programs(program, asked, 8, CPU).programs)


def calls(program: Program) -> list[int]:
    """The positions of the calls in which the stage meets others."""
    ops = program.function("train").ops
    return [
        at
        for at, op in enumerate(ops)
        if isinstance(op.attrs, COLLECTIVES) and "pipe" in op.attrs.axes
    ]


def reordered(program: Program, order: list[int]) -> Program:
    """The program with the ops of its step at these positions, in this order."""
    function = program.function("train")
    ops = tuple(function.ops[at] for at in order)
    return program.with_functions(msgspec.structs.replace(function, ops=ops))


def rows(programs: list[Program]) -> list[list[Meeting]]:
    return [list(meetings(p, "train", "pipe", STAGES)) for p in programs]


def test_stages_meet_among_some_and_among_all(stages: list[Program]) -> None:
    assert meeting_faults(stages, "train", "pipe") == []
    sizes = {len(some) for _, some, _ in rows(stages)[0]}
    assert {2, 3} <= sizes


@pytest.mark.parametrize("stage", range(STAGES))
def test_a_call_that_one_stage_does_not_make_shows(stages: list[Program], stage: int) -> None:
    whole = range(len(stages[stage].function("train").ops))
    for lost in calls(stages[stage]):
        made = [*stages]
        made[stage] = reordered(stages[stage], [at for at in whole if at != lost])
        assert meeting_faults(made, "train", "pipe"), lost


@pytest.mark.parametrize("stage", range(STAGES))
def test_calls_in_another_order_show(stages: list[Program], stage: int) -> None:
    found = calls(stages[stage])
    own = rows(stages)[stage]
    for first, second in pairwise(found):
        made = [*stages]
        order = [*range(len(stages[stage].function("train").ops))]
        order[first], order[second] = second, first
        made[stage] = reordered(stages[stage], order)
        changed = list(meetings(made[stage], "train", "pipe", STAGES)) != own
        assert bool(meeting_faults(made, "train", "pipe")) == changed
