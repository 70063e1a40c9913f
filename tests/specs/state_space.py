"""A small model whose layers mix the sequence by convolutions and recurrences of both kinds."""

MAMBA = """import "library/ssm.fllm" (mamba2_layer)
"""

DELTA = """
block delta(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (ssm_groups, state)
  param wk: embed -> (ssm_groups, state)
  param wv: embed -> (ssm_heads, ssm_dim)
  param decay: embed -> ssm_heads
  param rate: embed -> ssm_heads
  param near: [ssm_heads, ssm_dim, taps] = normal(std: 0.3)
  param wide: [embed, taps, mixed] = normal(std: 0.3)
  param back: mixed -> embed
  param out: (ssm_heads, ssm_dim) -> embed

  v = conv[seq](wv(x), near, taps: taps, pad: causal)
  k = wk(x)
  unit = k * rsqrt(sum[state](k * k) + 0.01)
  y = delta_attend(wq(x), unit, v, -exp(decay(x)), sigmoid(rate(x)), along: seq)
  h = x + out(y)
  return h + back(silu(conv[seq](h, wide, taps: taps, over: embed, pad: same)))
}
"""

HEAD = """fllm 1

IMPORTdims {
  batch
  seq
  vocab = 256
  embed = 8
  ssm_heads = 4
  ssm_dim = 2
  ssm_groups = GROUPS
  state = 4
  taps = 3
  mixed = 6
  layers = 4
}
BLOCKS
model tiny(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab
  stack body: PATTERN over layers

  return head(body(embedding(tokens)))
}

data text {
  source: "builtin:pydocs"
  tokenizer: bytes
  batch: 4
  seq: 8
}

train first: tiny {
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: constant(peak: 1e-2)
  steps: 10
  precision: f64
}
"""


def hybrid(groups: int = 2, more: str = "") -> str:
    """Layers of Mamba-2 and of the delta rule in turn, and what stands behind the run."""
    text = HEAD.replace("IMPORT", MAMBA + "\n").replace("GROUPS", str(groups))
    return text.replace("BLOCKS", DELTA).replace("PATTERN", "[mamba2_layer, delta]") + more
