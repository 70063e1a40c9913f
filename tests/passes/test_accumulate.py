"""Micro-batches: the same gradients, added up in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Add, Scan
from fllmc.ir.program import Program
from fllmc.ir.types import indices, tensor
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.training_errors import DimTaken, UnevenMicrobatches
from tests.passes.training_programs import PARAMETERS, SIZES, arguments, llama, relative, run

DATA = ("tokens", "targets", "weights")


def step(count: int, reduce: str = "f64", program: Program | None = None) -> Program:
    """The gradients of a whole step in `count` micro-batches."""
    accumulate = Accumulate(microbatches=count, reduce=reduce)
    return run(program or llama(), ApplyLoss(z_loss=1e-2), Differentiate(), accumulate)


def cut(given: dict[str, Any], count: int) -> dict[str, Any]:
    """The arguments with the batch cut into micro-batches."""
    shape = (count, SIZES["batch"] // count, SIZES["seq"])
    return {n: v.reshape(shape) if n in DATA and count > 1 else v for n, v in given.items()}


def test_one_microbatch_is_the_gradient_of_the_mean() -> None:
    program = step(1)
    given = arguments(program, "gradients")
    found = evaluate(program, "gradients", given)
    count = given["weights"].sum()
    before = run(llama(), ApplyLoss(z_loss=1e-2), Differentiate())
    expected = evaluate(before, "gradient", {**given, "seed": 1 / count})
    np.testing.assert_allclose(found["loss"], expected["loss"] / count, rtol=1e-12)
    assert list(found) == ["loss", *(f"grad.{name}" for name in PARAMETERS)]
    for name in found.keys() - {"loss"}:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12)
    assert not any(
        isinstance(op.attrs, Scan) and op.attrs.over == "microbatches"
        for op in program.function("gradients").ops
    )


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("frozen", [(), ("embedding", "attn.w"), ("body",)])
def test_the_number_of_microbatches_does_not_matter(count: int, frozen: tuple[str, ...]) -> None:
    whole = step(1, program=llama(frozen=frozen))
    given = arguments(whole, "gradients")
    given["weights"][1:3] = 0.0  # the micro-batches differ in count
    expected = evaluate(whole, "gradients", given)
    parts = step(count, program=llama(frozen=frozen))
    found = evaluate(parts, "gradients", cut(given, count))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert relative(found[name], value) < 1e-12, name


def test_the_gradients_of_a_stack_are_added_up_in_its_scan() -> None:
    program = step(2)
    micro, body = program.function("micro"), program.function("layer.backward")
    stacked = [name for name in PARAMETERS if name.startswith("body.")]
    for name in stacked:
        number = micro.outputs.index(f"grad.{name}")
        (maker,) = [op for op in micro.ops if micro.results[number] in op.results]
        assert isinstance(maker.attrs, Scan)
        assert micro.input_number(f"sum.grad.{name}") in maker.operands
    sums = {body.input_number(i.name) for i in body.inputs if i.name.startswith("sum.")}
    added = {v for op in body.ops if isinstance(op.attrs, Add) for v in op.operands}
    assert len(sums) == len(stacked) + 1  # and `mixing`, which all layers share
    assert sums <= added


@pytest.mark.parametrize(("params", "reduce"), [("f32", "f32"), ("bf16", "f32"), ("f32", "f64")])
@pytest.mark.parametrize("count", [1, 2])
def test_gradients_are_summed_in_the_reduce_dtype(params: str, reduce: str, count: int) -> None:
    program = step(count, reduce, llama(params, "bf16"))
    gradients = program.function("gradients")
    kinds = dict(zip(gradients.outputs, gradients.signature.results, strict=True))
    assert kinds.pop("loss") == tensor("f32")
    assert {kind.dtype for kind in kinds.values()} == {reduce}
    if count > 1:
        for function in (program.function("micro"), program.function("layer.backward")):
            pairs = zip(function.inputs, function.types, strict=False)
            sums = {k for i, k in pairs if i.name.startswith("sum.grad") and k.dims}
            assert {kind.dtype for kind in sums} <= {reduce}


def test_inputs_and_entries() -> None:
    program = step(2)
    assert program.entries == ("gradients", "forward", "predict")
    assert "gradient" not in program.signatures
    assert program.sizes.size("batch") == 2 and program.sizes.size("microbatches") == 2
    gradients, forward = program.function("gradients"), program.function("forward")
    kind = gradients.types[gradients.input_number("tokens")]
    assert kind == indices("vocab", "microbatches", "batch", "seq")
    assert [i.name for i in forward.inputs if i.role == "data"] == [f"micro.{n}" for n in DATA]
    kind = forward.types[forward.input_number("micro.tokens")]
    assert kind == indices("vocab", "batch", "seq")
    predicts = program.function("predict").inputs
    assert [i.name for i in predicts if i.role == "data"] == ["micro.tokens", "position"]


def test_one_microbatch_keeps_names() -> None:
    program = step(1)
    assert program.sizes.size("batch") == 4
    for entry in ("gradients", "forward"):
        assert [i.name for i in program.function(entry).inputs if i.role == "data"] == [*DATA]


@pytest.mark.parametrize("count", [3, 8])
def test_uneven_microbatches_are_a_mistake(count: int) -> None:
    with pytest.raises(DiagnosticError) as caught:
        step(count)
    (found,) = caught.value.diagnostics
    assert isinstance(found, UnevenMicrobatches)
    assert found.helps() == ("`microbatches` can be 1, 2, 4",)


def test_the_name_of_the_dim_is_taken() -> None:
    with pytest.raises(DiagnosticError) as caught:
        step(2, program=llama().with_dim("microbatches", 3))
    assert [type(found) for found in caught.value.diagnostics] == [DimTaken]
