"""Frozen parameters: stored in the compute dtype, with nothing kept or computed for their sake."""

from __future__ import annotations

import numpy as np
import pytest

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Cast, Dot, Rename, Transpose
from fllmc.ir.program import Function, Program
from fllmc.ir.settings import Lora
from fllmc.ir.types import Mesh
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.store_frozen import StoreFrozen
from fllmc.passes.training_errors import NothingTrains
from tests.passes.training_programs import arguments, llama, run

UPDATES = (Lora("body.*.attn.{wq, wo}", 2, 4.0),)


def adapted(tune: tuple[str, ...] = (), lora: tuple[Lora, ...] = ()) -> Program:
    """Everything frozen but what is tuned, in bf16 out of f32."""
    return run(
        llama("f32", "bf16"),
        ApplyAdapter(freeze=("*",), tune=tune, lora=lora),
        StoreFrozen(dtype="bf16"),
    )


def trained(program: Program, microbatches: int = 1) -> Program:
    """The whole training step."""
    steps = ApplyLoss(), Differentiate(), Accumulate(microbatches), OptimizerStep()
    return run(program, ShareEqual(), *steps, DropUnused())


def saved(program: Program) -> dict[str, str]:
    """What the backward body of the stack gets besides parameters, sums and cotangents."""
    body = program.function("layer.backward")
    pairs = zip(body.inputs, body.types, strict=False)
    own = ("grad.", "sum.")
    return {
        given.name: str(kind)
        for given, kind in pairs
        if given.role == "value" and not given.name.startswith(own)
    }


def test_frozen_is_stored_in_the_compute_dtype_and_trained_is_not() -> None:
    program = adapted(tune=("body.*.mlp",), lora=UPDATES)
    for parameter in program.parameters:
        assert parameter.type.dtype == ("f32" if parameter.trainable else "bf16"), parameter.name
    assert program.function("model").types[0].dtype == "bf16"


def test_no_parameter_is_cast_to_what_it_is_stored_in() -> None:
    program = adapted(lora=UPDATES)
    for function in program.functions:
        for op in function.ops:
            if isinstance(op.attrs, Cast):
                assert function.types[op.operands[0]].dtype != op.attrs.dtype
    maps = [op for op in program.function("layer").ops if isinstance(op.attrs, Dot)]
    held = program.function("layer")
    weights = [n for n, given in enumerate(held.inputs) if given.role == "param"]
    assert sum(any(v in weights for v in op.operands) for op in maps) == 7  # straight from storage


def test_wider_computation_leaves_narrow_parameters_as_they_are() -> None:
    program = run(llama("f32", "f64"), ApplyAdapter(freeze=("*",)))
    assert run(program, StoreFrozen(dtype="f64")) == program


@pytest.mark.parametrize("tune", [(), ("body.*.mlp.gate",), ("embedding",)])
def test_storage_does_not_change_the_step(tune: tuple[str, ...]) -> None:
    before = run(llama("f32", "bf16"), ApplyAdapter(freeze=("*",), tune=tune, lora=UPDATES))
    first = trained(before, 2)
    second = trained(run(before, StoreFrozen(dtype="bf16")), 2)
    given = arguments(first, "train") | {"step": 3.0}
    expected, found = evaluate(first, "train", given), evaluate(second, "train", given)
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


def test_no_gradient_state_or_result_is_of_a_frozen_parameter() -> None:
    program = trained(adapted(lora=UPDATES), 2)
    frozen = {p.name for p in program.parameters if not p.trainable}
    step = program.function("train")
    names = [given.name for given in step.inputs] + list(step.outputs)
    assert {name.split("#")[0] for name in names if "#" in name}.isdisjoint(frozen)
    assert frozen.isdisjoint(step.outputs)
    for function in program.functions:
        for given in function.inputs:
            owner = given.name.removeprefix("sum.").removeprefix("grad.")
            assert given.role == "param" or f"body.{owner}" not in frozen, given.name


def from_parameters(function: Function, value: int) -> bool:
    """Whether the value follows from parameters alone."""
    if value < len(function.inputs):
        return function.inputs[value].role == "param"
    (maker,) = [op for op in function.ops if value in op.results]
    return bool(maker.operands) and all(from_parameters(function, v) for v in maker.operands)


def test_nothing_kept_for_the_backward_pass_is_a_copy_of_a_frozen_parameter() -> None:
    program = trained(adapted(tune=("embedding",)))
    names = [f.name for f in program.functions if f.name.startswith("layer.forward")]
    for name in names:
        body = program.function(name)
        for value in body.results:
            assert not from_parameters(body, value)
    assert names


def test_inputs_of_frozen_maps_are_not_kept() -> None:
    """Of the MLP, only what its activation's slope needs; of attention, what its gradient reads."""
    whole = trained(run(llama("f32", "bf16")))
    frozen = trained(adapted(tune=("body.*.attn.wv",)))
    below = trained(adapted(tune=("body.*.mlp.down",)))
    count = {name: len(saved(p)) for name, p in (("whole", whole), ("frozen", frozen))}
    assert count["frozen"] < count["whole"]
    # The norm's input leads nowhere that trains in `below` but through the residual.
    assert "bf16[batch, seq, heads, head_dim]" in saved(frozen).values()
    assert "ffn" in " ".join(saved(below).values())


def test_a_stack_without_trained_parameters_runs_no_backward_at_all() -> None:
    program = trained(adapted(tune=("final_norm.scale",)))
    assert all("backward" not in function.name for function in program.functions)
    assert all("layer.forward" not in function.name for function in program.functions)


def test_frozen_maps_have_an_input_gradient_and_no_weight_gradient() -> None:
    program = trained(adapted(lora=UPDATES))
    back = program.function("layer.backward")
    weight = [
        op.path
        for op in back.ops
        if isinstance(op.attrs, Dot) and set(op.attrs.contract) >= {"batch", "seq"}
    ]
    assert sorted(weight) == [f"attn.{w}.lora_{part}" for w in ("wo", "wq") for part in "ab"]


def test_all_frozen_runs_forward() -> None:
    said: list[Diagnostic] = []
    program = run(adapted(), ShareEqual(), ApplyLoss())
    program = Differentiate().run(program, Context(Mesh(), said.append))
    assert [type(found) for found in said] == [NothingTrains]
    program = run(program, Accumulate(2), OptimizerStep(clip=1.0), DropUnused())
    step = program.function("train")
    assert step.outputs == ("loss",)
    given = arguments(program, "train") | {"step": 1.0}
    names = [given.name for given in program.function("train").inputs]
    found = evaluate(program, "train", {name: given[name] for name in names})
    assert np.isfinite(found["loss"])
    assert not any(isinstance(op.attrs, Transpose | Rename) for op in step.ops)
