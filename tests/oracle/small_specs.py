"""The specs that are judged: the shipped Llama and GPT-2, made small."""

from __future__ import annotations

LLAMA = """fllm 1

import "models/llama3_8b.fllm" (llama3_8b)

dims {
  vocab = 256
  embed = 16
  heads = 8
  kv_heads = 4
  head_dim = 6
  ffn = 12
  layers = 3
}

train run: llama3_8b {
  data: text
  loss: cross_entropy(z_loss: 1e-3)
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  no_decay: [*.scale, embedding]
  rate: cosine(peak: 1e-2, floor: 1e-3, warmup: 2)
  clip: 0.5
  steps: 5
  precision: policy(params: DTYPE, compute: DTYPE, reduce: DTYPE)
}
"""

GPT = """fllm 1

import "models/gpt2.fllm" (gpt2)

dims {
  vocab = 256
  embed = 16
  heads = 4
  ffn = 12
  layers = 3
}

train run: gpt2 {
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  no_decay: [*.scale, *.bias]
  rate: cosine(peak: 1e-2, floor: 1e-3, warmup: 2)
  steps: 5
  precision: policy(params: DTYPE, compute: DTYPE, reduce: DTYPE)
}
"""

REST = """
data text {
  source: "builtin:pydocs"
  batch: 16
  seq: 6
}

schedule placed for run {
  shard batch over data
  shard (HEADS, ffn, vocab) over tensor
  microbatches: COUNT
  DIRECTIVES
}
"""

STORED = "shard embed over data in *"
"""Parameters stored in parts over the data axis, gathered where they are used."""
SEQUENCE = "shard seq over tensor elsewhere"
"""Between the matrices, the sequence is divided over the tensor axis."""
RECOMPUTED = "recompute body.* keep [attn.attend]"
"""Of each layer the backward keeps its input and what attention gives."""


def small_spec(model: str, dtype: str, microbatches: int, directives: str = "") -> str:
    """The text of `llama` or `gpt`, everything in `dtype`, the batch cut into `microbatches`."""
    own, heads = (LLAMA, "heads, kv_heads") if model == "llama" else (GPT, "heads")
    rest = REST.replace("HEADS", heads).replace("COUNT", str(microbatches))
    rest = rest.replace("  DIRECTIVES\n", f"  {directives}\n" if directives else "")
    return own.replace("DTYPE", dtype) + rest
