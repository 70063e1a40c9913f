"""The whole training step against AdamW and clipping in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.optimizer_step import OptimizerStep
from tests.passes.training_programs import (
    BETAS,
    DECAY,
    EPS,
    PARAMETERS,
    arguments,
    llama,
    run,
)

STEPS = 10


def gradients(program: Program, count: int = 1, reduce: str = "f64") -> Program:
    return run(program, ApplyLoss(), Differentiate(), Accumulate(count, reduce))


def step_arguments(program: Program, step: int) -> dict[str, Any]:
    """Arguments for `train`; second moments are not negative."""
    given = arguments(program, "train") | {"step": np.asarray(float(step))}
    return {n: abs(v) if n.endswith("#v") else v for n, v in given.items()}


def adamw(given: dict[str, Any], name: str, grad: Any, step: int) -> dict[str, Any]:
    """Loshchilov and Hutter 2019; scales do not decay. The rate is 0.01 step / steps."""
    m = BETAS[0] * given[f"{name}#m"] + (1 - BETAS[0]) * grad
    v = BETAS[1] * given[f"{name}#v"] + (1 - BETAS[1]) * grad**2
    way = m / (1 - BETAS[0] ** step) / (np.sqrt(v / (1 - BETAS[1] ** step)) + EPS)
    way = way + (0.0 if name.endswith(".scale") else DECAY) * given[name]
    return {name: given[name] - 0.01 * step / STEPS * way, f"{name}#m": m, f"{name}#v": v}


@pytest.mark.parametrize("clip", [0.0, 1e-2, 1e6])
@pytest.mark.parametrize("step", [1, 7])
def test_adamw(clip: float, step: int) -> None:
    before = gradients(llama())
    program = run(before, OptimizerStep(steps=STEPS, clip=clip))
    given = step_arguments(program, step)
    inputs = {i.name for i in before.function("gradients").inputs}
    slopes = evaluate(before, "gradients", {n: v for n, v in given.items() if n in inputs})
    found = evaluate(program, "train", given)
    loss = slopes.pop("loss")
    norm = np.sqrt(sum((slope**2).sum() for slope in slopes.values()))
    scale = min(1.0, clip / (norm + 1e-6)) if clip else 1.0
    expected = {"loss": loss, "grad_norm": norm}
    for name in PARAMETERS:
        expected |= adamw(given, name, slopes[f"grad.{name}"] * scale, step)
    assert sorted(found) == sorted(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-12, atol=1e-15, err_msg=name)


def test_inputs_and_outputs() -> None:
    program = run(
        gradients(llama("f32", "bf16", ("attn", "embedding")), 2, "f32"), OptimizerStep(5)
    )
    train = program.function("train")
    trained = [p.name for p in program.parameters if p.trainable]
    states = [f"{name}#{state}" for name in trained for state in ("m", "v")]
    assert [i.name for i in train.inputs if i.role == "param"] == list(PARAMETERS)
    assert [i.name for i in train.inputs if i.role == "state"] == states
    assert [i.name for i in train.inputs if i.role == "host"] == ["step"]
    assert train.outputs == (*trained, *states, "loss", "grad_norm")
    kinds = dict(zip(train.outputs, train.signature.results, strict=True))
    for name in trained:
        kind = program.parameter(name).type
        assert kinds[name] == kinds[f"{name}#m"] == kind


def test_frozen_parameters_have_neither_state_nor_update() -> None:
    frozen = ("attn", "embedding", "mixing")
    program = run(gradients(llama(frozen=frozen)), OptimizerStep(5))
    train = program.function("train")
    lasting = [i.name for i in train.inputs if i.role == "state"] + list(train.outputs)
    assert not any(part in name for name in lasting for part in frozen if part != "attn")
    assert not any(f"body.attn.{w}" in name for name in lasting for w in ("wq", "wk", "wv", "wo"))


@pytest.mark.parametrize("count", [1, 2])
def test_entries(count: int) -> None:
    program = run(gradients(llama(), count), OptimizerStep(STEPS))
    assert program.entries == ("train", "evaluate", "predict")
    left = set(program.signatures)
    assert not left & {
        "forward",
        "gradient",
        "gradients",
        "optimizer",
        "optimizer.no_decay",
        "rate",
    }
    assert "optimizer.states" in left
    assert program.function("evaluate").outputs == ("loss", "count")


@pytest.mark.parametrize("count", [2, 4])
def test_the_step_does_not_depend_on_microbatches(count: int) -> None:
    whole = run(gradients(llama()), OptimizerStep(STEPS, 0.1))
    parts = run(gradients(llama(), count), OptimizerStep(STEPS, 0.1))
    given = step_arguments(whole, 3)
    data = ("tokens", "targets", "weights")
    shape = (count, 4 // count, 3)
    cut = {name: v.reshape(shape) if name in data else v for name, v in given.items()}
    expected, found = evaluate(whole, "train", given), evaluate(parts, "train", cut)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-13, err_msg=name)


def test_training_lowers_the_loss() -> None:
    program = run(gradients(llama()), OptimizerStep(steps=1, clip=1.0))
    given = step_arguments(program, 1)
    given |= {name: np.zeros_like(value) for name, value in given.items() if "#" in name}
    losses: list[float] = []
    for step in range(1, 6):
        found = evaluate(program, "train", given | {"step": np.asarray(float(step))})
        losses.append(float(found["loss"]))
        given |= {name: value for name, value in found.items() if name in given}
    assert losses == sorted(losses, reverse=True)
