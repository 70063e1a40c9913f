"""A model with what checkpoints of other formats do to parameters, and a random folder for it."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

SPEC = """fllm 1

dims {{
  batch
  seq
  vocab = 10
  embed = 8
  heads = 4
  kv_heads = 2
  group = heads / kv_heads
  head_dim = embed - 2
  pairs = head_dim / 2
  ffn = 5
  experts = 3
  first = 1
  layers = 2
  mixed = 5
}}

block wide(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (kv_heads, head_dim)
  param wv: embed -> (kv_heads, head_dim)
  param wo: (heads, head_dim) -> embed
  param turn: embed -> embed

  return x + turn(wo(attend(wq(x), wk(x), wv(x), along: seq, mask: causal)))
}}

block expert(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  param up: [experts, embed, ffn] = normal(std: 0.1)
  param gate: [experts, embed, ffn] = normal(std: 0.1)
  param bias: [embed] = zeros()

  h = dot[embed](x, up) * dot[embed](x, gate)
  return x + sum[experts](sum[ffn](h)) + bias
}}

block local(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  param scale: [embed] = ones()
  param only: [embed] = ones()

  return x * scale * only
}}

block global(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  param scale: [embed] = ones()

  return x * scale
}}

model all(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {{
  param embedding: vocab -> embed
  stack body: wide over layers
  stack more: expert over layers
  stack rest: [2 * local, global] over mixed

  return embedding.T(rest(more(body(embedding(tokens)))))
}}

checkpoint names for all {{
{lines}
}}

data text {{
  source: "builtin:pydocs"
  tokenizer: "none.json"
  batch: 2
  seq: 4
}}

train run: all {{
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: constant(peak: 1e-3)
  steps: 1
}}
"""

LINES = """  embedding <-> "wte" = "head" : [vocab, embed]
  body[i].{wq, wk, wv} <-> "h.{i}.qkv" : [
    (kv_heads ((group head_dim) + head_dim + head_dim)),
    embed
  ] where heads = (kv_heads group)
  body[i].wo <-> "h.{i}.o" : [embed, (heads 2 pairs)] where head_dim = (pairs 2)
  body[i].turn <-> "h.{i}.turn" : [out.embed, 1, in.embed]
  more[i].up[e] <-> "h.{i + layers}.experts.{e}.up" : [ffn, embed]
  more[i].gate[0] <-> "h.{i + 2}.experts.first" : [(embed ffn)]
  more[i].gate[1] <-> "h.{2*i + first}.experts.second" : [embed, ffn]
  more[i].gate[2] <-> "h.{i}.experts.third" : [ffn, embed]
  more[0].bias <-> "bias.start" : [embed]
  more[1].bias <-> "bias.end" : [embed]
  rest[i].scale <-> "rest.{i}.scale" : [embed]
  rest[i].only <-> "rest.{i}.only" : [embed]
  ignore "h.{i}.mask"

  config {
    embed = text.n_embd
    vocab = vocab_size
    head_dim = head_dim
    "act" = "silu"
  }"""

CONFIG = {"text": {"n_embd": 8}, "vocab_size": 10, "act": "silu", "head_dim": None, "x": [1]}


def spec_text(lines: str = LINES) -> str:
    """The spec with these lines in its checkpoint section."""
    return SPEC.format(lines=lines)


def tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """The foreign tensors, drawn."""
    torch.manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {"wte": (10, 8), "bias.start": (8,), "bias.end": (8,)}
    for i in range(2):
        shapes |= {f"h.{i}.qkv": (2 * 24, 8), f"h.{i}.o": (8, 24), f"h.{i}.turn": (8, 1, 8)}
        shapes |= {f"h.{i + 2}.experts.{e}.up": (5, 8) for e in range(3)}
        shapes |= {f"h.{i + 2}.experts.first": (40,), f"h.{2 * i + 1}.experts.second": (8, 5)}
        shapes |= {f"h.{i}.experts.third": (5, 8)}
    shapes |= {f"rest.{i}.scale": (8,) for i in range(5)}
    shapes |= {f"rest.{i}.only": (8,) for i in (0, 1, 3, 4)}
    return {name: torch.randn(shape).to(dtype) for name, shape in shapes.items()}


def folder(path: Path, held: dict[str, Tensor], shards: int = 3) -> Path:
    """Write the tensors in shards, with an index and a configuration."""
    path.mkdir(parents=True)
    names = sorted(held)
    files = {name: f"model-{number % shards}.safetensors" for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({n: held[n].contiguous() for n in names if files[n] == file}, path / file)
    index = {"metadata": {}, "weight_map": files}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    (path / "config.json").write_text(json.dumps(CONFIG))
    return path
