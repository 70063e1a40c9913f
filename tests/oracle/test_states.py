"""States of blocks follow the whole step, whatever it is divided into, and no gradient."""

from __future__ import annotations

import numpy as np
import pytest

from fllmc.frontend import load
from fllmc.ir.render import render
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.oracle.routing_specs import CHOICES, EXPERTS, ROUTING, routing_spec
from tests.oracle.test_experts import furthest
from tests.specs.evaluated import arguments, evaluated_step

SPEED = 0.01
STATED = """  total load = tally(chosen, along: seq)
  update bias = bias + 0.01 * sign(mean[experts](load) - load)
"""
FIXED = ROUTING["corrected"].replace(STATED, "").replace("state bias", "param bias")


def given() -> dict[str, np.ndarray]:
    """What `evaluated_step` begins with."""
    spec, found, sources = load("stated.fllm", text=routing_spec(ROUTING["corrected"]))
    assert spec is not None, render(found, sources)
    cx = Context(Mesh(), lambda _: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    return {name: np.asarray(value) for name, value in arguments(program).items()}


def first_load(values: dict[str, np.ndarray]) -> np.ndarray:
    """How often the first layer's experts are chosen by all tokens of the step."""
    x = values["embedding"][values["tokens"]]
    x = x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * values["body.norm.scale"][0]
    scores = 1 / (1 + np.exp(-(x @ values["body.moe.router"][0])))
    order = np.argsort(-(scores + 0.1 * values["body.moe.bias"][0]), axis=-1)[..., :CHOICES]
    return np.bincount(order.ravel(), minlength=EXPERTS)


@pytest.mark.parametrize("lines", [("microbatches: 1",), ("microbatches: 4",)])
def test_a_bias_follows_the_load_of_all_tokens(lines: tuple[str, ...]) -> None:
    values = given()
    load = first_load(values)
    assert len(set(load)) > 2
    after = evaluated_step(routing_spec(ROUTING["corrected"], *lines), "1")["body.moe.bias"]
    wanted = values["body.moe.bias"][0] + SPEED * np.sign(load.mean() - load)
    assert np.array_equal(after[0], wanted)


def test_all_else_steps_as_with_a_bias_that_stays() -> None:
    stated = evaluated_step(routing_spec(ROUTING["corrected"]), "1")
    fixed = evaluated_step(routing_spec(FIXED), "1")
    for values in (stated, fixed):
        for name in [name for name in values if name.startswith("body.moe.bias")]:
            del values[name]
    assert furthest(stated, fixed) == 0


ZEROS = [f"zero {stage} over data" for stage in (1, 2, 3)]


@pytest.mark.parametrize("zero", ZEROS)
def test_a_state_may_be_stored_in_parts(zero: str) -> None:
    lines = ("shard batch over data", zero, "microbatches: 2")
    plain = evaluated_step(routing_spec(ROUTING["corrected"]), "1")
    found = evaluated_step(routing_spec(ROUTING["corrected"], *lines), "data=2")
    assert np.array_equal(found["body.moe.bias"], plain["body.moe.bias"])
    assert furthest(found, plain) < 1e-11


def test_a_frozen_state_stays() -> None:
    text = routing_spec(ROUTING["corrected"]).replace("train run: net", "train run: kept")
    text += "\nadapter kept on net {\n  freeze body.*.moe\n}\n"
    assert "body.moe.bias" not in evaluated_step(text, "1")


def test_counts_are_exact_in_low_precision() -> None:
    """What is added up is in 32 bits, though layers compute in 16."""
    policy = "precision: policy(params: bf16, compute: bf16, reduce: f32)"
    text = routing_spec(ROUTING["corrected"]).replace("precision: f64", policy)
    spec, found, sources = load("stated.fllm", text=text)
    assert spec is not None, render(found, sources)
    cx = Context(Mesh(), lambda _: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    assert program.parameter("body.moe.bias").type.dtype == "f32"
    body = next(f for f in program.functions if f.name.endswith("backward"))
    taken = body.types[: len(body.inputs)]
    assert {kind.dtype for kind in taken if kind.names == ("experts",)} == {"f32"}
