"""Small mixtures of experts as specs: dropless, with a capacity, and dense as what both mean."""

from __future__ import annotations

VOCAB, EMBED, FFN, EXPERTS, CHOICES, LAYERS, BATCH, SEQ = 256, 8, 12, 4, 2, 2, 8, 6
SLOTS = 2
"""Fewer than a balanced choice would take, so that much is dropped."""

DENSE = """block dense_mlp(
  x: [batch, seq, embed],
  weights: [batch, seq, experts],
) -> [batch, seq, embed] {
  param gate: [experts, embed, ffn] = normal(std: 1 / sqrt(embed))
  param up: [experts, embed, ffn] = normal(std: 1 / sqrt(embed))
  param down: [experts, ffn, embed] = normal(std: 1 / sqrt(ffn))

  hidden = swiglu(dot[embed](x, gate), dot[embed](x, up))
  return dot[experts](dot[ffn](hidden, down), weights)
}

block dense(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  sub mlp: dense_mlp

  scores = softmax(router(x), over: experts)
  least = stop(-max[choices](-top_k(scores, over: experts, to: choices)))
  kept = where(less(scores, least), 0, scores)
  return mlp(x, kept / sum[experts](kept))
}
"""

SPEC = """fllm 1

import "library/transformer.fllm" (norm)
import "library/experts.fllm" ({imported})

dims {{
  batch
  seq
  vocab = {VOCAB}
  embed = {EMBED}
  heads = 4
  kv_heads = 2
  ffn = {FFN}
  experts = {EXPERTS}
  choices = {CHOICES}
  slots = {slots}
  layers = {LAYERS}
}}

{dense}
block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {{
  sub norm: norm
  sub moe: {block}

  return x + moe(norm(x))
}}

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {{
  param embedding: vocab -> embed = normal(std: 0.5)
  param head: embed -> vocab
  stack body: layer over layers

  return head(body(embedding(tokens)))
}}

data text {{
  source: "builtin:pydocs"
  batch: {BATCH}
  seq: {SEQ}
}}

train run: net {{
  data: text
  loss: cross_entropy(z_loss: 0.1)
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  rate: constant(peak: 0.1)
  clip: 0.5
  steps: 5
  precision: f64
}}

schedule placed for run {{
{lines}
}}
"""


def moe_spec(block: str, *lines: str, slots: int = SLOTS) -> str:
    """A model of such blocks (`moe`, `capacity_moe` or `dense`), scheduled by these lines."""
    sizes = {
        "VOCAB": VOCAB, "EMBED": EMBED, "FFN": FFN, "EXPERTS": EXPERTS, "CHOICES": CHOICES,
        "LAYERS": LAYERS, "BATCH": BATCH, "SEQ": SEQ,
    }  # fmt: skip
    given = "moe" if block == "dense" else block
    schedule = "\n".join(f"  {line}" for line in lines)
    return SPEC.format(
        **sizes, block=block, imported=given, dense=DENSE, lines=schedule, slots=slots
    )
