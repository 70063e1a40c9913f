"""What is shifted and joined: meaning, gradients, meshes, and losses of tokens further on."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from fllmc.frontend import load
from fllmc.ir.evaluate import evaluate
from fllmc.ir.render import render
from tests.codegen.running import check, compiled
from tests.oracle.test_experts import furthest
from tests.oracle.test_gradients_against_jax import agrees_with_jax
from tests.specs.evaluated import evaluated_step
from tests.specs.random_specs import Drawn

jax = pytest.importorskip("jax")

SPEC = """fllm 1

dims {
  batch
  seq
  vocab = 32
  embed = 8
  near = 6
  far = 4
  both = 10
  layers = 2
}

block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> near
  param early: embed -> far
  param down: both -> embed

  ahead = shift(early(x), along: seq, by: -1)
  return x + down(concat(up(x), ahead, over: (near, far), to: both))
}

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.5)
  param from_token: embed -> embed
  param from_state: embed -> embed
  stack body: layer over layers
  sub further: layer

  x = body(embedding(tokens))
  next = shift(tokens, along: seq)
  further_on = further(from_state(x) + from_token(embedding(next)))
  scores = log_softmax(embedding.T(further_on), over: vocab)
  there = shift(0 * x + 1, along: seq, by: 2)
  wanted = shift(tokens, along: seq, by: 2)
  penalty further_tokens = -0.3 * mean[embed](there) * pick(scores, wanted)
  return embedding.T(x)
}

data text {
  source: "builtin:pydocs"
  tokenizer: bytes
  batch: 8
  seq: 4
}

train run: net {
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4)
  rate: constant(peak: 0.1)
  clip: 0.5
  steps: 5
  precision: f64
}

schedule placed for run {
  LINES
}
""".replace("vocab = 32", "vocab = 256")


@pytest.fixture(autouse=True)
def wide_jax() -> Iterator[None]:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def spec(*lines: str) -> str:
    return SPEC.replace("LINES", "\n  ".join(lines or ("microbatches: 1",)))


def test_what_is_shifted_and_joined_is_where_it_should_be() -> None:
    loaded, found, sources = load("shift.fllm", text=spec())
    assert loaded is not None, render(found, sources)
    layer = loaded.program.function("layer")
    rng = np.random.default_rng(0)
    x, up, early, down = (
        rng.standard_normal(loaded.program.sizes.shape(kind)) for kind in layer.types[:4]
    )
    found_out = evaluate(loaded.program, "layer", {"x": x, "up": up, "early": early, "down": down})
    before = np.concatenate([np.zeros_like(x[:, :1]), x[:, :-1]], axis=1)
    wanted = x + np.concatenate([x @ up, before @ early], axis=-1) @ down
    assert np.abs(found_out["out"] - wanted).max() < 1e-12


def test_gradients_are_those_of_jax() -> None:
    agrees_with_jax(Drawn(spec()))


def test_the_compiled_step_is_the_evaluators() -> None:
    check(compiled(spec()))


PLANS = {
    "data and tensor": (
        "data=2,tensor=2",
        ("shard batch over data", "shard (both, vocab) over tensor"),
    ),
    "sequences divided": ("context=2", ("shard seq over context", "microbatches: 2")),
    "stages": ("pipe=2", ("shard layers over pipe", "microbatches: 2")),
}


@pytest.mark.parametrize("plan", PLANS)
def test_every_mesh_takes_the_step_of_one_device(plan: str) -> None:
    mesh, lines = PLANS[plan]
    found = evaluated_step(spec(*lines), mesh)
    assert furthest(found, evaluated_step(spec(), "1")) < 1e-11
