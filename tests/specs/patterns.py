"""Specs whose stack is a pattern of two kinds of layers, with a period and layers that are left."""

TEXT = """fllm 1

dims {
  batch
  seq
  vocab = 256
  embed = 16
  heads = 2
  head_dim = embed / heads
  ffn = 24
  layers = LAYERS
}

block local(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> ffn
  param down: ffn -> embed

  hidden = up(rms_norm(x, over: embed))
  penalty small = 0.01 * mean[ffn](hidden * hidden)
  return x + down(silu(hidden))
}

block global(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wo: (heads, head_dim) -> embed

  q = wq(rms_norm(x, over: embed))
  return x + wo(attend(q, q, q, along: seq, mask: causal))
}

model tiny(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
BODY
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


def pattern_spec(layers: int, period: str = "[2 * local, global]", more: str = "") -> str:
    """A model with one stack of so many layers, and what stands behind the run."""
    body = f"  stack body: {period} over layers\n\n  return embedding.T(body(embedding(tokens)))"
    return TEXT.replace("LAYERS", str(layers)).replace("BODY", body) + more


def written_out(kinds: list[str]) -> str:
    """The same model with a sub for each of its layers."""
    subs = "\n".join(f"  sub l{number}: {kind}" for number, kind in enumerate(kinds))
    value = "embedding(tokens)"
    for number in range(len(kinds)):
        value = f"l{number}({value})"
    text = TEXT.replace("LAYERS", "1").replace("BODY", f"{subs}\n\n  return embedding.T({value})")
    return text.replace("  layers = 1\n", "")
