"""The stages of a pipeline together mean what the whole program means."""

from __future__ import annotations

import pytest
from msgspec import structs

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.evaluate_stages import evaluate_stages
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Program
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.stages.cut_stages import Plan, cut_stages
from fllmc.passes.stages.split import stretches
from tests.oracle.small_specs import RECOMPUTED, STORED, small_spec
from tests.passes.pipelined import arguments, errors, sharded, table

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
    stages = cut_stages(program, Plan("pipe", ("layers",), table(2, 4)))
    names = [
        {p.layer_name(n) for p in stage.parameters for n in range(len(p.layers))}
        for stage in stages
    ]
    assert not names[0] & names[1]
    assert {f"body.{layer}.attn.wq" for layer in range(3)} <= names[0] | names[1]
    assert [p.name for p in stages[0].parameters if not p.stack] == ["embedding"]


def test_a_parameter_of_two_stages_is_stored_on_both() -> None:
    program = sharded(small_spec("gpt", "f64", 4), MESHES["4 stages"])
    stages = cut_stages(program, Plan("pipe", ("layers",), table(4, 4)))
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
    stages = cut_stages(
        sharded(text, MESHES["pipe"]), Plan("pipe", ("layers",), table(2, 4, split=True))
    )
    actions = turns(stages[0]).actions
    lost = planted(stages, 0, actions=tuple(a for a in actions if a != "W0.2"))
    got = evaluate_stages(lost, "pipe", "train", given)
    assert abs(got["body.attn.wq#m"] - wanted["body.attn.wq#m"]).max() > 1e-9
    for bad in (actions[1:], tuple(a for a in actions if a != "I0.1"), actions[::-1]):
        with pytest.raises(InternalError):
            evaluate_stages(planted(stages, 0, actions=bad), "pipe", "train", given)


def test_stretches_are_as_even_as_can_be() -> None:
    assert stretches([1, 4, 4, 4, 4, 6], 2) == [0, 0, 0, 0, 1, 1]
    assert stretches([0, 1, 1, 1, 1, 4], 3) == [0, 0, 0, 1, 1, 2]
    assert stretches([5, 1, 1], 3) == [0, 1, 2]
