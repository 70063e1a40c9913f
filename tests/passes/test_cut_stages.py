"""The stages of a pipeline together mean what the whole program means."""

from __future__ import annotations

import pytest
from msgspec import structs

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.evaluate_stages import evaluate_stages
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Program
from fllmc.ir.text import parse_program
from fllmc.ir.types import Axis, Mesh
from fllmc.ir.verify import verify
from fllmc.passes.stages.cut_stages import cut_stages
from tests.oracle.small_specs import RECOMPUTED, STORED, small_spec
from tests.passes.pipelined import arguments, errors, plan_of, sharded, table

MESHES = {
    "pipe": Mesh((Axis("pipe", 2),)),
    "4 stages": Mesh((Axis("pipe", 4),)),
    "data": Mesh((Axis("data", 2), Axis("pipe", 2))),
    "all": Mesh((Axis("data", 2), Axis("tensor", 2), Axis("pipe", 2))),
}


@pytest.mark.parametrize("model", ["llama", "gpt"])
@pytest.mark.parametrize(
    ("mesh", "chunks", "vee", "split", "directives"),
    [
        ("pipe", 1, False, False, ""),
        ("4 stages", 1, False, True, RECOMPUTED),
        ("data", 2, False, False, STORED),
        ("data", 2, True, True, STORED),
        ("all", 1, False, False, ""),
        ("data", 1, False, False, "zero 1 over data"),
        ("data", 1, False, True, "zero 2 over data"),
        ("data", 2, True, False, "zero 3 over data"),
    ],
)
def test_stages_compute_what_one_device_does(
    model: str, mesh: str, chunks: int, vee: bool, split: bool, directives: str
) -> None:
    ranks = MESHES[mesh].extent(("pipe",))
    times = table(ranks, 4, chunks, vee, split)
    found = errors(small_spec(model, "f64", 4, directives), MESHES[mesh], times)
    assert {name: error for name, error in found.items() if error > 1e-11} == {}


def test_a_stage_has_its_own_layers_only() -> None:
    program = sharded(small_spec("llama", "f64", 4), MESHES["pipe"])
    stages = cut_stages(program, plan_of(table(2, 4))).programs
    names = [
        {p.layer_name(n) for p in stage.parameters for n in range(len(p.layers))}
        for stage in stages
    ]
    assert not names[0] & names[1]
    assert {f"body.{layer}.attn.wq" for layer in range(3)} <= names[0] | names[1]
    assert [p.name for p in stages[0].parameters if not p.stack] == ["embedding"]


def test_a_parameter_of_two_stages_is_stored_on_both() -> None:
    program = sharded(small_spec("gpt", "f64", 4), MESHES["4 stages"])
    stages = cut_stages(program, plan_of(table(4, 4))).programs
    held = [{p.name for p in stage.parameters} for stage in stages]
    assert ["embedding" in names for names in held] == [True, False, False, True]


def planted(stages: tuple[Program, ...], rank: int, **changes: object) -> tuple[Program, ...]:
    """The stages with one rank's turns changed."""
    program = stages[rank]
    train = program.function("train")
    ops = tuple(
        structs.replace(op, attrs=structs.replace(op.attrs, **changes))
        if isinstance(op.attrs, Pipeline)
        else op
        for op in train.ops
    )
    changed = program.with_functions(structs.replace(train, ops=ops))
    return (*stages[:rank], changed, *stages[rank + 1 :])


def turns(program: Program) -> Pipeline:
    """The turns of a stage's training step."""
    (found,) = (op for op in program.function("train").ops if isinstance(op.attrs, Pipeline))
    assert isinstance(found.attrs, Pipeline)
    return found.attrs


def test_a_lost_or_repeated_turn_shows() -> None:
    text = small_spec("llama", "f64", 4)
    whole = sharded(text, Mesh())
    given = arguments(whole, "train")
    wanted = evaluate(whole, "train", given)
    stages = cut_stages(sharded(text, MESHES["pipe"]), plan_of(table(2, 4, split=True))).programs
    actions = turns(stages[0]).actions
    for wrong in (actions[:-1], (*actions, actions[-1]), actions[::-1]):
        with pytest.raises(InternalError, match="pipeline"):
            verify(planted(stages, 0, actions=wrong)[0])
    lost = planted(stages, 0, actions=tuple(a for a in actions if a != "W0.2"))
    got = evaluate_stages(lost, "pipe", "train", given)
    assert abs(got["body.attn.wq#m"] - wanted["body.attn.wq#m"]).max() > 1e-9
    for bad in (actions[1:], tuple(a for a in actions if a != "I0.1"), actions[::-1]):
        with pytest.raises(InternalError):
            evaluate_stages(planted(stages, 0, actions=bad), "pipe", "train", given)


def test_messages_that_are_mixed_up_show() -> None:
    text = small_spec("llama", "f64", 4)
    given = arguments(sharded(text, Mesh()), "train")
    program = sharded(text, MESHES["4 stages"])
    stages = cut_stages(program, plan_of(table(4, 4))).programs
    (one, there), (other, back) = turns(stages[1]).gives
    swapped = planted(stages, 1, gives=((one, back), (other, there)))
    with pytest.raises(InternalError):
        evaluate_stages(swapped, "pipe", "train", given)


def test_a_sum_over_stages_must_be_made() -> None:
    text = """
program sharded
mesh pipe=2
dims embed=4
entries step

func step(%0 x: f32[embed] data) -> (y) {
  %1: f32[embed]+pipe = share{axes=[pipe]}(%0)
  return %1
}
"""
    with pytest.raises(InternalError, match="partial over pipe"):
        verify(parse_program(text))
