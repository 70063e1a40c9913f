"""Blocks that route in the ways that models in use do, and a model of two layers of one of them."""

from __future__ import annotations

EMBED, FFN, SHARED, EXPERTS, CHOICES, BATCH, SEQ = 8, 12, 6, 8, 3, 8, 4

ROUTING = {
    # Jiang et al. 2024: the softmax of the best logits.
    "mixtral": """block routed_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  sub mlp: expert_mlp

  logits = router(x)
  chosen = top_k_indices(logits, over: experts, to: choices)
  return mlp(x, softmax(top_k(logits, over: experts, to: choices), over: choices), chosen)
}
""",
    # Qwen2-MoE: weights do not sum to one, and a shared expert has a gate of its own.
    "qwen2_moe": """block routed_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  param shared_gate: [embed] = normal(std: 1 / sqrt(embed))
  sub shared: shared_mlp
  sub mlp: expert_mlp

  scores = softmax(router(x), over: experts)
  chosen = top_k_indices(scores, over: experts, to: choices)
  own = sigmoid(dot[embed](x, shared_gate)) * shared(x)
  return mlp(x, top_k(scores, over: experts, to: choices), chosen) + own
}
""",
    # DeepSeek-V3: sigmoids, groups of four, a bias that only chooses, a factor, a shared expert.
    "deepseek_v3": """block routed_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  param bias: [experts] = normal(std: 0.1)
  sub best_groups: best_groups
  sub shared: shared_mlp
  sub mlp: expert_mlp

  scores = sigmoid(router(x))
  chosen = top_k_indices(best_groups(scores + bias), over: experts, to: choices)
  top = pick(scores, chosen)
  return mlp(x, 2.5 * top / (sum[choices](top) + 1e-20), chosen) + shared(x)
}
""",
    # The same with a bias that follows how often experts are chosen, and two penalties.
    "corrected": """block routed_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  state bias: [experts] = zeros()
  sub imbalance: imbalance
  sub mlp: expert_mlp

  scores = sigmoid(router(x))
  chosen = top_k_indices(scores + 0.1 * bias, over: experts, to: choices)
  total load = tally(chosen, along: seq)
  update bias = bias + 0.01 * sign(mean[experts](load) - load)
  penalty balance = 0.01 * imbalance(scores / sum[experts](scores), chosen)
  top = pick(scores, chosen)
  return mlp(x, top / sum[choices](top), chosen)
}
""",
    # gpt-oss: biases on router and experts, clamped gates.
    "gpt_oss": """block routed_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param router: embed -> experts
  param router_bias: [experts] = normal(std: 0.1)
  param gate: [experts, embed, ffn] = normal(std: 1 / sqrt(embed))
  param gate_bias: [experts, ffn] = normal(std: 0.1)
  param up: [experts, embed, ffn] = normal(std: 1 / sqrt(embed))
  param up_bias: [experts, ffn] = normal(std: 0.1)
  param down: [experts, ffn, embed] = normal(std: 1 / sqrt(ffn))
  param down_bias: [experts, embed] = normal(std: 0.1)

  logits = router(x) + router_bias
  chosen = top_k_indices(logits, over: experts, to: choices)
  share = softmax(top_k(logits, over: experts, to: choices), over: choices)
  rows = dispatch(x, chosen, along: seq, to: routed)
  a = expert_dot[embed](rows, gate, chosen, along: seq)
  b = expert_dot[embed](rows, up, chosen, along: seq)
  g = min(a + expert_take(gate_bias, chosen, along: seq, to: routed), 0.2)
  u = max(min(b + expert_take(up_bias, chosen, along: seq, to: routed), 0.2), -0.2)
  hidden = (u + 1) * g * sigmoid(1.702 * g)
  result = expert_dot[ffn](hidden, down, chosen, along: seq)
  biased = result + expert_take(down_bias, chosen, along: seq, to: routed)
  weighed = biased * dispatch(share, chosen, along: seq, to: routed)
  return combine(weighed, chosen, along: seq, of: routed)
}
""",
}  # fmt: skip

SPEC = """fllm 1

import "library/transformer.fllm" (norm)
import "library/experts.fllm" (expert_mlp, best_groups, imbalance)

dims {
  batch
  seq
  vocab = 256
  embed = EMBED
  ffn = FFN
  shared_ffn = SHARED
  experts = EXPERTS
  choices = CHOICES
  routed = seq * choices
  groups = 2
  best = 1
  layers = 2
}

block shared_mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param gate: embed -> shared_ffn
  param up: embed -> shared_ffn
  param down: shared_ffn -> embed

  return down(swiglu(gate(x), up(x)))
}

ROUTED
block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {
  sub norm: norm
  sub moe: routed_mlp

  return x + moe(norm(x))
}

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.5)
  param head: embed -> vocab
  stack body: layer over layers

  return head(body(embedding(tokens)))
}

data text {
  source: "builtin:pydocs"
  tokenizer: bytes
  batch: BATCH
  seq: SEQ
}

train run: net {
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  rate: constant(peak: 0.1)
  clip: 0.5
  steps: 5
  precision: f64
}

schedule placed for run {
LINES
}
"""


def routing_spec(block: str, *lines: str) -> str:
    """The text of a model with this block, scheduled by these lines."""
    sizes = {
        "EMBED": EMBED, "FFN": FFN, "SHARED": SHARED, "EXPERTS": EXPERTS,
        "CHOICES": CHOICES, "BATCH": BATCH, "SEQ": SEQ, "ROUTED": block,
        "LINES": "\n".join(f"  {line}" for line in lines or ("microbatches: 1",)),
    }  # fmt: skip
    text = SPEC
    for name, size in sizes.items():
        text = text.replace(name, str(size))
    return text
