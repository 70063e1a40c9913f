"""What stages post and wait for comes to its end, whatever the links do; what is changed shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fllmc.codegen.handovers import Sends, handover_faults
from fllmc.codegen.turns import Turn, Turns
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Program
from fllmc.ir.settings import Pipeline as Order
from fllmc.ir.settings import Shard
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.directives import Asked
from tests.oracle.small_specs import small_spec
from tests.passes.pipelined import CPU, sharded

ORDERS = (
    Order("gpipe"),
    Order("1f1b"),
    Order("interleaved", 2),
    Order("breadth_first", 2),
    Order("zb_h1"),
    Order("zb_v", 2),
    Order("auto", memory=1.5),
    Order("auto", 2, memory=1.5),
)
DEEP = small_spec("gpt", "f64", 8).replace("layers = 3", "layers = 9")
MODELS: tuple[Sends, ...] = ("buffered", "rendezvous")


@pytest.fixture(scope="module", params=[2, 4])
def program(request: pytest.FixtureRequest) -> Program:
    return sharded(DEEP, Mesh((Axis("pipe", request.param),)))


def turns_of(program: Program, order: Order) -> list[Turns]:
    """The turns of each rank's training step."""
    asked = Asked("pipe", ("layers",), order, Shard(("layers",), ("pipe",)))
    found: list[Turns] = []
    for stage in stage_programs(program, asked, 8, CPU).programs:
        (attrs,) = (o.attrs for o in stage.function("train").ops if isinstance(o.attrs, Pipeline))
        found.append(Turns(stage, attrs))
    return found


@pytest.mark.parametrize("order", ORDERS, ids=lambda o: f"{o.kind}-{o.chunks}")
def test_every_order_of_work_hands_over_what_it_should(program: Program, order: Order) -> None:
    turns = turns_of(program, order)
    for sends in MODELS:
        assert handover_faults(turns, sends) == []


def changed(turns: Sequence[Turns], rank: int, made: Sequence[Turn]) -> list[Turns]:
    """The same with other turns of one rank."""
    turns[rank].turns = tuple(made)
    return list(turns)


@pytest.fixture
def plain() -> list[Turns]:
    return turns_of(sharded(DEEP, Mesh((Axis("pipe", 2),))), Order("1f1b"))


def test_a_receive_that_is_not_posted_shows(plain: list[Turns]) -> None:
    rows = [t._replace(posts=()) if at == 3 else t for at, t in enumerate(plain[1].turns)]
    with pytest.raises(KeyError):
        handover_faults(changed(plain, 1, rows))


def test_a_send_that_is_lost_shows(plain: list[Turns]) -> None:
    rows = [t._replace(sends=()) if t.action == "F0.5" else t for t in plain[0].turns]
    found = handover_faults(changed(plain, 0, rows))
    assert any("takes" in each for each in found), found
    assert any("for ever" in each for each in found), found


def test_receives_in_another_order_show(plain: list[Turns]) -> None:
    rows = list(plain[1].turns)
    posts = [at for at, turn in enumerate(rows) if turn.posts]
    i, j = posts[1], posts[2]
    rows[i], rows[j] = rows[i]._replace(posts=rows[j].posts), rows[j]._replace(posts=rows[i].posts)
    rows = [t._replace(takes=()) for t in rows]
    assert any("takes" in each for each in handover_faults(changed(plain, 1, rows)))


def test_both_passes_in_one_channel_cross_where_stages_go_there_and_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each pass has groups of its own for this: NCCL would hand cotangents out as activations."""
    turns = turns_of(sharded(DEEP, Mesh((Axis("pipe", 4),))), Order("zb_v", 2))
    monkeypatch.setattr(Turns, "way", lambda self, port: "any")
    assert any("takes" in each for each in handover_faults(turns))


def test_too_few_buffers_lock_where_sends_are_not_buffered() -> None:
    """Rank 1 can't go on before rank 0 asks for its first result, nor rank 0 before rank 1 does."""
    turns = turns_of(sharded(DEEP, Mesh((Axis("pipe", 2),))), Order("breadth_first", 2))
    for rank, own in enumerate(turns):
        rows = [
            turn._replace(sends=tuple((held._replace(slot=0), *rest) for held, *rest in turn.sends))
            for turn in own.turns
        ]
        changed(turns, rank, rows)
    assert handover_faults(turns, "buffered") == []
    assert any("for ever" in each for each in handover_faults(turns, "rendezvous"))


@pytest.mark.parametrize(
    ("order", "holds"),
    [(Order("1f1b"), True), (Order("zb_h1"), True), (Order("gpipe"), False)],
    ids=lambda o: getattr(o, "kind", ""),
)
def test_which_orders_survive_links_that_meet_at_their_first_use(
    program: Program, order: Order, holds: bool
) -> None:
    """Not all do, so the runtime opens all channels before the first turn, in one order."""
    assert (handover_faults(turns_of(program, order), "meeting") == []) == holds
