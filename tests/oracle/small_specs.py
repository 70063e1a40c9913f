"""The specs that are judged: a small Llama of the shipped blocks, and a small GPT written out."""

from __future__ import annotations

from collections.abc import Mapping

RUN = """
data text {
  source: "builtin:pydocs"
  batch: 16
  seq: 6
}

train run: MODEL {
  data: text
  loss: cross_entropy(z_loss: Z_LOSS)
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-5, weight_decay: 0.1)
  no_decay: NO_DECAY
  rate: cosine(peak: 1e-2, floor: 1e-3, warmup: 2)
  clip: CLIP
  steps: 5
  precision: policy(params: DTYPE, compute: DTYPE, reduce: DTYPE)
}

schedule placed for run {
  shard batch over data
  shard (HEADS, ffn, vocab) over tensor
  microbatches: MICROBATCHES
}
"""

LIBRARY = """fllm 1

import "library/optimizers.fllm" (adamw)
import "library/rates.fllm" (cosine)
"""

LLAMA = """import "models/llama3_8b.fllm" (llama3_8b)

dims {
  batch
  seq
  vocab = 20
  embed = 16
  heads = 8
  kv_heads = 4
  head_dim = 6
  ffn = 12
  layers = 3
}
"""

GPT = """
dims {
  batch
  seq
  vocab = 20
  embed = 16
  heads = 4
  head_dim = 4
  ffn = 12
  layers = 3
}

block norm(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param scale: [embed] = ones()
  param bias: [embed] = zeros()

  return layer_norm(x, over: embed, eps: 1e-5) * scale + bias
}

block attention(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (heads, head_dim)
  param wv: embed -> (heads, head_dim)
  param wo: (heads, head_dim) -> embed
  param bq: [heads, head_dim] = zeros()
  param bk: [heads, head_dim] = zeros()
  param bv: [heads, head_dim] = zeros()
  param bo: [embed] = zeros()

  return wo(attend(wq(x) + bq, wk(x) + bk, wv(x) + bv, along: seq, mask: causal)) + bo
}

block mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> ffn
  param up_bias: [ffn] = zeros()
  param down: ffn -> embed
  param down_bias: [embed] = zeros()

  return down(gelu(up(x) + up_bias, approximate: tanh)) + down_bias
}

block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {
  sub attn_norm: norm
  sub attn: attention
  sub mlp_norm: norm
  sub mlp: mlp

  h = x + attn(attn_norm(x))
  return h + mlp(mlp_norm(h))
}

model small_gpt(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.02)
  param position: seq -> embed = normal(std: 0.02)
  sub final_norm: norm
  stack body: layer over layers

  x = embedding(tokens) + position(positions(along: seq))
  return embedding.T(final_norm(body(x)))
}
"""

LLAMA_WORDS = {
    "MODEL": "llama3_8b",
    "HEADS": "heads, kv_heads",
    "Z_LOSS": "1e-3",
    "NO_DECAY": "[*.scale, embedding]",
    "CLIP": "0.5",
}
GPT_WORDS = {
    "MODEL": "small_gpt",
    "HEADS": "heads",
    "Z_LOSS": "0.0",
    "NO_DECAY": "[*.scale, *.bias]",
    "CLIP": "0.0",
}


def small_spec(model: str, dtype: str, microbatches: int) -> str:
    """The text of `llama` or `gpt`, everything in `dtype`, the batch cut into `microbatches`."""
    own, words = (LLAMA, LLAMA_WORDS) if model == "llama" else (GPT, GPT_WORDS)
    text = LIBRARY + own + RUN
    return _filled(text, {**words, "DTYPE": dtype, "MICROBATCHES": str(microbatches)})


def _filled(text: str, words: Mapping[str, str]) -> str:
    for word, value in words.items():
        text = text.replace(word, value)
    return text
