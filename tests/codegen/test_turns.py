"""No buffer of a pipeline stage is written while what is in it is still wanted."""

from __future__ import annotations

import pytest

from fllmc.codegen.turns import Held, Turns
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Program
from fllmc.ir.settings import Pipeline as Order
from fllmc.ir.settings import Shard
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import Asked
from tests.oracle.small_specs import small_spec
from tests.passes.pipelined import CPU, sharded

RANKS, MICROS = 2, 8
MESH = Mesh((Axis("pipe", RANKS),))
ORDERS = (
    Order("gpipe"),
    Order("1f1b"),
    Order("interleaved", 2),
    Order("breadth_first", 2),
    Order("zb_h1"),
    Order("zb_v", 2),
    Order("auto", memory=1.5),
)


@pytest.fixture(scope="module")
def program() -> Program:
    return sharded(small_spec("llama", "f64", MICROS), MESH)


def stages_of(program: Program, order: Order) -> list[Turns]:
    """The turns of each rank's training step."""
    asked = Asked("pipe", ("layers",), order, Shard(("layers",), ("pipe",)))
    found: list[Turns] = []
    for stage in stage_programs(program, asked, MICROS, CPU).programs:
        (attrs,) = (o.attrs for o in stage.function("train").ops if isinstance(o.attrs, Pipeline))
        found.append(Turns(stage, attrs))
    return found


def message_names(turns: Turns) -> dict[str, str]:
    """Both ends of a message by one name, which is what is written into a buffer here."""
    names = {port: f"m{number}" for port, (number, _) in turns.gifts.items()}
    return names | {port: f"m{number}" for port, (number, _) in turns.messages.items()}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_what_is_read_is_what_was_written_for_that_micro_batch(
    program: Program, order: Order
) -> None:
    for turns in stages_of(program, order):
        inside: dict[Held, tuple[str, int]] = {}
        names = message_names(turns)
        for turn in turns.turns:
            for held, number, _, micro in turn.posts:
                inside[held] = (f"m{number}", micro)
            function = turns.functions[turn.key]
            for given in function.inputs:
                if given.name in turn.held:
                    held = turn.held[given.name]
                    expected = names.get(held.port, held.port)
                    assert inside[held] == (expected, turn.micro), turn.action
            for name in function.outputs:
                if name in turn.held:
                    held = turn.held[name]
                    inside[held] = (names.get(held.port, held.port), turn.micro)


def test_a_missing_buffer_shows(program: Program) -> None:
    turns = stages_of(program, Order("gpipe"))[0]
    kept = {port: count for port, count in turns.counts.items() if port.startswith("kept")}
    assert kept and set(kept.values()) == {MICROS}
    ahead = stages_of(program, Order("1f1b"))
    first, last = ({p: c for p, c in t.counts.items() if p.startswith("kept")} for t in ahead)
    assert set(first.values()) == {RANKS} and set(last.values()) == {1}


@pytest.mark.parametrize("order", ORDERS, ids=lambda order: order.kind)
def test_every_message_that_goes_off_is_received(program: Program, order: Order) -> None:
    stages = stages_of(program, order)
    sent = [
        (number, turn.micro, turns.attrs.rank, to)
        for turns in stages
        for turn in turns.turns
        for _, number, to in turn.sends
    ]
    received = [
        (number, micro, giver, turns.attrs.rank)
        for turns in stages
        for turn in turns.turns
        for _, number, giver, micro in turn.posts
    ]
    assert sorted(sent) == sorted(received)
    assert len(set(sent)) == len(sent)
