"""Windows, caps, sinks, biases and values of another width, on meshes: as on one device."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.render import render
from fllmc.ir.settings import Context as Way
from fllmc.ir.settings import Shard
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.codegen.running import check
from tests.codegen.running import compiled as whole
from tests.ir.programs import arguments_for

SPEC = """fllm 1

dims {
  batch
  seq
  vocab = 256
  embed = 12
  heads = 4
  kv_heads = 2
  head_dim = 6
  value_dim = 4
  reach = 3
  far = 2 * seq - 1
  source = seq
  lower = 2
  upper = 4
  layers = 2
}

block windowed(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (kv_heads, head_dim)
  param wv: embed -> (kv_heads, head_dim)
  param wo: (heads, head_dim) -> embed
  param sinks: [heads] = normal(std: 1)

  q = rope(wq(x), along: seq, rotary: 4, scaling: linear(factor: 2))
  k = rope(wk(x), along: seq, rotary: 4, scaling: linear(factor: 2))
  return wo(attend(q, k, wv(x), along: seq, window: reach, cap: 2.5, sinks: sinks))
}

block wide(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (heads, head_dim)
  param wv: embed -> (heads, value_dim)
  param wo: (heads, value_dim) -> embed
  param slope: [heads] = normal(std: 1)

  ahead = number(positions(along: far)) - (seq - 1)
  bias = slope * tanh(ahead / 4)
  k = wk(x)
  low = part(k, of: head_dim, to: lower)
  high = part(k, of: head_dim, to: upper, first: 2)
  turned = rope(high, along: seq, rotary: 2, behind: 2)
  keys = concat(sum[heads](low), turned, over: (lower, upper), to: head_dim)
  return wo(attend(wq(x), keys, wv(x), along: seq, mask: MASK, scale: 1 / 2, bias: bias))
}

block crossing(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (kv_heads, head_dim)
  param wv: embed -> (kv_heads, value_dim)
  param wo: (heads, value_dim) -> embed

  k = wk(x){seq = source}
  v = wv(x){seq = source}
  return wo(attend(wq(x), k, v, along: seq, keys: source, mask: none, cap: 2))
}

block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {
  sub near: windowed
  sub far: wide
  sub across: crossing

  h = x + near(rms_norm(x, over: embed))
  g = h + far(rms_norm(h, over: embed))
  return g + across(rms_norm(g, over: embed))
}

model small(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 1)
  param head: embed -> vocab
  stack body: layer over layers

  return head(rms_norm(body(embedding(tokens)), over: embed))
}

data text {
  source: "builtin:pydocs"
  batch: 4
  seq: 8
}

train run: small {
  data: text
  loss: cross_entropy()
  optimizer: adamw(eps: 1e-4)
  rate: constant(peak: 1e-2)
  steps: 5
  precision: f64
}

schedule placed for run {
  shard batch over data
  shard (heads, kv_heads, vocab) over tensor
  microbatches: 2
}
"""
WAYS: tuple[Way, ...] = ("gather", "ring", "exchange")


@cache
def compiled(axes: str, way: Way, mask: str) -> Program:
    mesh = parse_mesh(axes, Mesh())[0] if axes else Mesh()
    spec, found, sources = load("small.fllm", text=SPEC.replace("MASK", mask))
    assert spec is not None, render(found, sources)
    along = (Shard(("seq",), ("context",)),) if "context" in axes else ()
    shards = tuple(s for s in (*spec.schedule.shards, *along) if mesh.has(s.axes[0]))
    spec = replace(spec, schedule=replace(spec.schedule, shards=shards, context=way))
    cx = Context(mesh, lambda _: None)
    return run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)[0]


@pytest.mark.parametrize(
    ("axes", "way", "mask"),
    [
        ("tensor=4", "gather", "causal"),
        *(("context=2", way, "causal") for way in WAYS),
        *(("context=2", way, "none") for way in WAYS[:2]),
        ("context=2,tensor=2", "ring", "causal"),
    ],
)
def test_every_placement_computes_what_one_device_does(axes: str, way: Way, mask: str) -> None:
    one, program = compiled("", "gather", mask), compiled(axes, way, mask)
    given = arguments_for(one, 0, "train")
    given = {k: np.abs(v) if k.endswith(("#v", "weights", "step")) else v for k, v in given.items()}
    wanted, found = evaluate(one, "train", given), evaluate(program, "train", given)
    for name, value in wanted.items():
        assert np.isfinite(value).all()
        error = np.linalg.norm(value - found[name])
        assert error <= 1e-11 * np.linalg.norm(value), name


@pytest.mark.parametrize("mask", ["causal", "none"])
def test_the_compiled_step_computes_what_the_program_says(mask: str) -> None:
    check(whole(SPEC.replace("MASK", mask)))


@pytest.mark.long
@pytest.mark.parametrize(
    ("axes", "way"),
    [
        ("data=2,tensor=2", "gather"),
        *(("context=2,tensor=2", way) for way in WAYS),
        *(("context=4", way) for way in WAYS[:2]),
    ],
)
@pytest.mark.parametrize("mask", ["causal", "none"])
def test_more_placements(axes: str, way: Way, mask: str) -> None:
    test_every_placement_computes_what_one_device_does(axes, way, mask)
