"""Positions and attention of the language are those of transformers, gradients included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from fllmc.frontend import load
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.render import render
from fllmc.ir.types import Sizes, tensor
from tests.codegen.running import hand_made
from tests.kernels.meaning import kind, mean

pytest.importorskip("transformers")

MODEL = """fllm 1

IMPORT

dims {
  batch
  seq
  vocab = 256
  embed = 32
  heads = 4
  head_dim = 8
  kinds = 2
  q_rank = 12
  kv_rank = 10
  plain_dim = 6
  rotary_dim = 4
  value_dim = 5
}

BLOCK

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  sub it: NAME

  x = embedding(tokens)
  return embedding.T(x + 0 * USE)
}

data text {
  source: "builtin:pydocs"
  batch: 2
  seq: SEQ
}

train run: net {
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: constant(peak: 1e-3)
  steps: 1
  precision: DTYPE
}
"""


def model(name: str, use: str, *, file: str = "", block: str = "", seq: int = 12) -> Program:
    """A model that uses a block of a library file, or a given one."""
    given = f'import "library/{file}.fllm" ({name})' if file else ""
    parts = {"IMPORT": given, "BLOCK": block, "NAME": name, "USE": use, "SEQ": str(seq)}
    text = MODEL.replace("DTYPE", "f64")
    for key, value in parts.items():
        text = text.replace(key, value)
    spec, found, sources = load("small.fllm", text=text)
    assert spec is not None, render(found, sources)
    return spec.program


def run(program: Program, name: str, **given: Any) -> np.ndarray:
    return evaluate(replace(program, entries=(name,)), name, given)["out"]


def config(kind: str, **given: Any) -> Any:
    from transformers import LlamaConfig

    scaling = {"rope_type": kind, "rope_theta": 5e5, **given}
    return LlamaConfig(
        hidden_size=64, num_attention_heads=2, max_position_embeddings=256, rope_parameters=scaling
    )


FACTORS = [1.0 + 0.25 * i for i in range(16)]
ORIGINAL = {"original_max_position_embeddings": 64}
SCALINGS = {
    "linear(factor: 4)": ("linear", {"factor": 4.0}),
    "llama3(factor: 8, original: 64, low: 1, high: 4)": (
        "llama3", {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **ORIGINAL},
    ),
    "yarn(factor: 4, original: 64)": ("yarn", {"factor": 4.0, **ORIGINAL}),
    "yarn(factor: 4, original: 64, fast: 16, slow: 2, bounds: exact, magnitude: 1.5)": (
        "yarn",
        {"factor": 4.0, "beta_fast": 16, "beta_slow": 2, "truncate": False,
         "attention_factor": 1.5, **ORIGINAL},
    ),
    f"longrope(factor: 4, original: 64, short: {tuple(FACTORS)}, long: {tuple(FACTORS[::-1])})": (
        "longrope",
        {"factor": 4.0, "short_factor": FACTORS, "long_factor": FACTORS[::-1], **ORIGINAL},
    ),
}  # fmt: skip


@pytest.mark.parametrize("seq", [32, 96])
@pytest.mark.parametrize("scaling", SCALINGS, ids=lambda text: text.split("(")[0])
def test_scaled_speeds(scaling: str, seq: int) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    kind, given = SCALINGS[scaling]
    wanted, magnitude = ROPE_INIT_FUNCTIONS[kind](config(kind, **given), "cpu", seq_len=seq)
    block = f"""block turned(x: [batch, seq, embed]) -> [batch, seq, embed] {{
      return rope(x, along: seq, theta: 500_000, scaling: {scaling})
    }}"""
    program = model("turned", "it(x)", block=block, seq=seq)
    (attrs,) = [op.attrs for op in program.function("turned").ops if isinstance(op.attrs, ops.Rope)]
    assert attrs.magnitude == pytest.approx(magnitude, rel=1e-12)
    np.testing.assert_allclose(attrs.speeds(32), wanted.double().numpy(), rtol=1e-6)


def test_alibi() -> None:
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    slopes = build_alibi_tensor(torch.ones(1, 2), 4, torch.float32)[:, 0, 1].double().numpy()
    found = run(model("alibi", "sum[heads, far](it())", file="positions"), "alibi")
    np.testing.assert_allclose(found, -slopes[:, None] * np.abs(np.arange(-11, 12)), rtol=1e-7)


@pytest.mark.parametrize(("name", "both"), [("causal_buckets", False), ("buckets_both_ways", True)])
def test_buckets_of_t5(name: str, both: bool) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    seq = 300
    program = model(name, "sum[heads, far](it())", file="positions", seq=seq)
    distances = torch.arange(1 - seq, seq)
    buckets = T5Attention._relative_position_bucket(distances, bidirectional=both)
    table = np.random.default_rng(0).standard_normal((32, 4))
    np.testing.assert_array_equal(run(program, name, table=table), table[buckets.numpy()].T)


def test_sinusoids() -> None:
    from transformers.models.whisper.modeling_whisper import sinusoids

    found = run(model("sinusoids", "it()", file="positions"), "sinusoids")
    np.testing.assert_allclose(found, sinusoids(12, 32).double().numpy(), atol=2e-6)


def test_turning_by_angles_is_rope() -> None:
    """Angles of positions along one dim give plain rotary positions; others any other."""
    block = """block angled(x: [batch, seq, embed]) -> [batch, seq, embed] {
      sub by: turn
      speed = exp(-log(10_000) * number(positions(along: pairs)) / pairs)
      angle = number(positions(along: seq)) * speed + 0 * sum[embed](x)
      heads_of = x{embed = (heads, head_dim)}
      return by(heads_of, angle){(heads, head_dim) = embed}
    }"""
    text = 'import "library/positions.fllm" (turn)'
    program = model("angled", "it(x)", block=f"{text}\n\n{block}")
    x = np.random.default_rng(0).standard_normal((2, 12, 32))
    found = run(program, "angled", x=x).reshape(2, 12, 4, 8)
    (wanted,) = mean(
        ops.Rope("seq", "dim"),
        {"batch": 2, "seq": 12, "heads": 4, "dim": 8},
        [(kind("f64", "batch seq heads dim"), torch.from_numpy(x.reshape(2, 12, 4, 8)))],
    )
    np.testing.assert_allclose(found, wanted, atol=1e-12)


def attention(**given: Any) -> Program:
    sizes = {"batch": 2, "seq": 9, "heads": 4, "groups": 2, "width": 6}
    b = Builder("main", Sizes(sizes))
    q = b.input("q", tensor("f64", "batch", "heads", "seq", "width"), "data")
    k, v = (b.input(n, tensor("f64", "batch", "groups", "seq", "width"), "data") for n in "kv")
    d = b.input("d", tensor("f64", "batch", "heads", "seq", "width"), "data")
    sinks = [b.input("sinks", tensor("f64", "heads"), "data")] if given.get("sinks") else []
    names = ("seq", "heads", "groups", "width", 0.4)
    out, lse = b.emit(ops.Attend(*names, **given), q, k, v, *sinks)
    grads = b.emit(ops.AttendGrad(*names, **given), q, k, v, *sinks, out, lse, d)
    named = ["q", "k", "v", "sinks"][: 3 + len(sinks)]
    return hand_made(b, [out, *grads], ["out", *named])


@pytest.mark.parametrize("window", [0, 4])
@pytest.mark.parametrize("family", ["gemma2", "gpt_oss"])
def test_attention_of(family: str, window: int) -> None:
    """Soft caps of Gemma 2 and sinks of gpt-oss, under a window or not, to 1e-12 in fp64."""
    from importlib import import_module

    theirs = import_module(f"transformers.models.{family}.modeling_{family}")
    rng = np.random.default_rng(0)
    shapes = {"q": (2, 4, 9, 6), "k": (2, 2, 9, 6), "v": (2, 2, 9, 6), "d": (2, 4, 9, 6)}
    values = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    given: dict[str, Any] = {"window": window, "cap": 1.5}
    if family == "gpt_oss":
        values["sinks"], given = rng.standard_normal(4), {"window": window, "sinks": True}
    leaves = {n: torch.from_numpy(x).requires_grad_() for n, x in values.items()}
    module: Any = torch.nn.Module()
    module.num_key_value_groups = 2
    module.sinks = leaves.get("sinks")
    at = torch.arange(9)
    far = at[:, None] - at
    seen = (far >= 0) & (far < (window or 9))
    mask = torch.zeros(9, 9, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    more = {} if family == "gpt_oss" else {"softcap": 1.5}
    args = (module, leaves["q"], leaves["k"], leaves["v"], mask)
    out = theirs.eager_attention_forward(*args, scaling=0.4, **more)[0].transpose(1, 2)
    out.backward(leaves["d"].detach())
    found = evaluate(attention(**given), "main", values)
    # Gemma's softmax is in float32.
    allowed = 1e-12 if family == "gpt_oss" else 1e-5
    np.testing.assert_allclose(found["out"], out.detach().numpy(), atol=allowed)
    for name in found.keys() - {"out"}:
        grad = leaves[name].grad
        assert grad is not None
        np.testing.assert_allclose(found[name], grad.numpy(), atol=allowed)


def test_latent_attention_is_that_of_deepseek() -> None:
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3 import modeling_deepseek_v3 as theirs

    configured: Any = DeepseekV3Config
    settings = configured(
        hidden_size=32, num_attention_heads=4, num_key_value_heads=4, q_lora_rank=12,
        kv_lora_rank=10, qk_nope_head_dim=6, qk_rope_head_dim=4, v_head_dim=5,
        attn_implementation="eager", attention_bias=False,
    )  # fmt: skip
    torch.manual_seed(0)
    module = theirs.DeepseekV3Attention(settings, 0).double()
    x = torch.randn(2, 12, 32, dtype=torch.float64)
    speeds = 1e4 ** (-torch.arange(0, 4, 2, dtype=torch.float64) / 4)
    angles = torch.arange(12, dtype=torch.float64)[:, None] * speeds
    both = torch.cat((angles, angles), -1)[None]
    mask = torch.full((12, 12), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    wanted = module(x, (both.cos(), both.sin()), mask)[0].detach().numpy()
    w = {name: p.detach().numpy() for name, p in module.named_parameters()}
    down, up = w["kv_a_proj_with_mqa.weight"], w["kv_b_proj.weight"].reshape(4, 11, 10)
    found = run(
        model("attention", "it(x)", file="latent_attention"),
        "attention",
        x=x.numpy(),
        q_down=w["q_a_proj.weight"].T,
        q_scale=w["q_a_layernorm.weight"],
        q_up=w["q_b_proj.weight"].T.reshape(12, 4, 10),
        kv_down=down[:10].T,
        k_turned=down[10:].T,
        kv_scale=w["kv_a_layernorm.weight"],
        k_up=up[:, :6].transpose(2, 0, 1),
        v_up=up[:, 6:].transpose(2, 0, 1),
        wo=w["o_proj.weight"].T.reshape(4, 5, 32),
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
