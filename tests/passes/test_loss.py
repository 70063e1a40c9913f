"""The loss against its formula, and the shape of what is added for it."""

from __future__ import annotations

import numpy as np
import pytest

from fllmc.ir.evaluate import evaluate
from fllmc.ir.types import indices, tensor
from fllmc.passes.apply_loss import ApplyLoss
from tests.passes.training_programs import arguments, llama, run


@pytest.mark.parametrize("z_loss", [0.0, 0.1])
def test_the_loss_is_a_weighted_sum(z_loss: float) -> None:
    model = llama()
    program = run(model, ApplyLoss(z_loss=z_loss))
    given = arguments(program, "forward")
    tokens = {n: v for n, v in given.items() if n not in ("targets", "weights")}
    logits = evaluate(model, "model", tokens)["out"]
    lse = np.log(np.exp(logits).sum(-1))
    picked = np.take_along_axis(logits, given["targets"][..., None], -1)[..., 0]
    expected = (given["weights"] * (lse - picked + z_loss * lse**2)).sum()
    found = evaluate(program, "forward", given)
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-12)
    np.testing.assert_allclose(found["count"], given["weights"].sum(), rtol=1e-12)


def test_large_logits_do_not_overflow() -> None:
    program = run(llama(), ApplyLoss())
    given = arguments(program, "forward")
    given["final_norm.scale"] = np.full(6, 1e4)
    assert np.isfinite(evaluate(program, "forward", given)["loss"])


def test_predict_gives_the_logits_at_a_position() -> None:
    model = llama()
    program = run(model, ApplyLoss())
    given = arguments(program, "predict") | {"position": np.asarray(1)}
    found = evaluate(program, "predict", given)["logits"]
    del given["position"]
    np.testing.assert_array_equal(found, evaluate(model, "model", given)["out"][:, 1])


@pytest.mark.parametrize(("compute", "wide"), [("bf16", "f32"), ("f32", "f32"), ("f64", "f64")])
def test_the_loss_is_at_least_f32(compute: str, wide: str) -> None:
    program = run(llama(compute, compute), ApplyLoss())
    forward = program.function("forward")
    assert forward.signature.results == (tensor(wide), tensor(wide))
    kinds = dict(zip((i.name for i in forward.inputs), forward.types, strict=False))
    assert kinds["targets"] == indices("vocab", "batch", "seq")
    assert kinds["weights"] == tensor(wide, "batch", "seq")
    loss = [op for op in forward.ops if op.path == "loss" and op.kind != "cast"]
    assert {forward.types[op.results[0]].dtype for op in loss} <= {wide, "f64"}
    assert program.function("predict").signature.results[0].dtype == compute


def test_the_model_is_replaced_by_entries() -> None:
    program = run(llama(), ApplyLoss())
    assert program.level == "training"
    assert program.entries == ("forward", "predict")
    assert "model" not in program.signatures
    assert {"optimizer", "optimizer.no_decay", "optimizer.states", "rate"} <= set(
        program.signatures
    )
