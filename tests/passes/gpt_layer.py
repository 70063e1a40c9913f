"""The layer of Korthikanti et al. 2022 (arXiv 2205.05198, section 4.1) as a spec.

Attention is written out, as in that paper's implementation. A dropout mask is a comparison, one
byte an element, with numbers that follow from the layer's own values; what is kept does not depend
on where they come from.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from fllmc.driver import compile_spec
from fllmc.ir.ops import Scan
from fllmc.ir.plan import Plan

SPEC = """fllm 1

dims {
  batch
  seq
  vocab = 32
  embed = EMBED
  heads = HEADS
  head_dim = embed / heads
  ffn = 4 * embed
  layers = 3
  key = seq
}

block shifted(x: [batch, seq, embed], by: [embed]) -> [batch, seq, embed] {
  return x + by
}

block norm(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param scale: [embed] = ones()
  param bias: [embed] = zeros()
  sub shift: shifted

  return shift(layer_norm(x, over: embed, eps: 1e-5) * scale, bias)
}

block plus(a: [batch, seq, embed], b: [batch, seq, embed]) -> [batch, seq, embed] {
  return a + b
}

block product(a: [batch, seq, ffn], b: [batch, seq, ffn]) -> [batch, seq, ffn] {
  return a * b
}

block dropout(x: [batch, seq, embed]) -> [batch, seq, embed] {
  return where(less(x, 0.9), x * 1.11, 0)
}

block score_dropout(x: [batch, heads, seq, key]) -> [batch, heads, seq, key] {
  return where(less(x, 0.9), x * 1.11, 0)
}

block mixed(
  p: [batch, heads, seq, key], v: [batch, key, heads, head_dim]
) -> [batch, seq, heads, head_dim] {
  return dot[key](p, v)
}

block attention(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param wq: embed -> (heads, head_dim)
  param wk: embed -> (heads, head_dim)
  param wv: embed -> (heads, head_dim)
  param wo: (heads, head_dim) -> embed
  param bo: [embed] = zeros()
  sub drop: score_dropout
  sub mix: mixed

  k = wk(x){seq = key}
  v = wv(x){seq = key}
  scores = dot[head_dim](wq(x), k) * head_dim ^ -0.5
  e = exp(scores - stop(max[key](scores)))
  p = drop(e / sum[key](e))
  return wo(mix(p, v)) + bo
}

block gelu_of(x: [batch, seq, ffn]) -> [batch, seq, ffn] {
  sub times: product

  return times(x, 0.5 * (1 + erf(x * 0.7071067811865476)))
}

block mlp(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param up: embed -> ffn
  param down: ffn -> embed
  param bias: [embed] = zeros()
  sub act: gelu_of

  return down(act(up(x))) + bias
}

block layer(x: [batch, seq, embed]) -> [batch, seq, embed] {
  sub attn_norm: norm
  sub attn: attention
  sub attn_drop: dropout
  sub middle: plus
  sub mlp_norm: norm
  sub mlp: mlp
  sub mlp_drop: dropout

  h = middle(x, attn_drop(attn(attn_norm(x))))
  return h + mlp_drop(mlp(mlp_norm(h)))
}

model gpt(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  stack body: layer over layers

  return embedding.T(body(embedding(tokens)))
}

data text {
  source: "text"
  tokenizer: "t.json"
  batch: BATCH
  seq: SEQ
}

train run: gpt {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 0.1)
  steps: 5
  precision: policy(params: f32, compute: bf16, reduce: f32)
}

schedule placed for run {
DIRECTIVES
}
"""

EVERYTHING = (
    "attn_norm.shift",
    "attn.{wq, wk, wv, exp, mix}",
    "attn.drop.{less, where}",
    "attn_drop.less",
    "mlp_drop.less",
    "middle",
    "mlp_norm.shift",
    "mlp.up",
    "mlp.act.times",
)
"""What the paper's implementation keeps, beside a layer's input."""

SELECTIVE = tuple(
    "attn.{wq, wk, wv, mix}" if "exp" in path else path
    for path in EVERYTHING
    if "drop.{" not in path
)
"""The same without scores, softmax and its dropout."""


def compiled(s: int, b: int, h: int, a: int, directives: str, mesh: str = "") -> Plan:
    """The plan for sequences of s in batches of b, width h and a heads, under these directives."""
    text = SPEC.replace("EMBED", str(h)).replace("HEADS", str(a))
    text = text.replace("BATCH", str(b)).replace("SEQ", str(s))
    with TemporaryDirectory() as folder:
        path = Path(folder) / "gpt.fllm"
        path.write_text(text.replace("DIRECTIVES", directives), encoding="utf-8")
        return compile_spec(str(path), mesh).plan


def kept(plan: Plan) -> list[tuple[str, int]]:
    """Types and bytes of what one layer's forward pass keeps for its backward pass, of one rank."""
    (scan,) = (
        op
        for name in ("train", "gradients")
        if name in plan.program.entries
        for op in plan.program.function(name).ops
        if isinstance(op.attrs, Scan) and not op.attrs.reverse
    )
    assert isinstance(scan.attrs, Scan)
    body = plan.program.function(scan.attrs.function)
    kinds = [body.types[value] for value in body.results[scan.attrs.carries :]]
    return [(str(kind), plan.program.sizes.local_bytes(kind)) for kind in kinds]
