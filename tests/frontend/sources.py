"""Specifications that the tests of the frontend share."""

LLAMA = """\
# A small Llama.
fllm 1

import "library/blocks.fllm" (norm, attention)
import "other.fllm" (mlp)

dims {
  batch                        # bound by `data`
  seq
  vocab = 128_256
  embed = 4_096
  heads = 32
  head_dim = embed / (heads * 1)
  layers = 32
}

block norm(x: [batch, seq, embed]) -> [batch, seq, embed] {
  param scale: [embed] = ones()

  # Root mean square, see the library.
  return rms_norm(x, over: embed, eps: 1e-5) * scale
}

block odd(x: [batch, seq, embed], at: seq[batch, seq], c: []) -> [batch, seq] {
  param wq: embed -> (heads, head_dim)
  param wo: (heads, head_dim) -> embed = normal(std: 0.02)

  y = dot[embed](wq.T(x){seq = key, batch = other}, -x^2)
  z = (x + y) * -3.5e-2 - f((0.9, 0.95), list: [a, b], flag: true)
  return sum[embed, seq](y - z) / 2
}

model tiny(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.02)
  sub final_norm: norm
  stack body: layer over layers

  return embedding.T(final_norm(body(embedding(tokens))))
}

data c4 {
  source: "data/\\"c4\\"/*.bin"
  batch: 512
  shuffle: true
}

optimizer adamw(betas: (b1, b2) = (0.9, 0.999), eps = 1e-8, decay) {
  state m = 0
  state v = 0

  m = b1 * m + (1 - b1) * grad
  v = b2 * v + (1 - b2) * grad^2
  return m / (sqrt(v) + eps)
}

rate cosine(peak, floor = 0, warmup = 0) {
  t = min(step / warmup, 1)
  return floor + (peak - floor) * t
}

train pretrain: tiny {
  data: c4
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-8)
  no_decay: [*.scale, embedding, body.{0, 1}.*.wq, 3, -1.5]
  rate: cosine(peak: 3e-4, floor: -1)
}

mesh pod {
  data: 2
  tensor: 8
}

schedule pod_16 for pretrain on pod {
  shard batch over data
  shard embed over data in *
  shard (heads, vocab) over (tensor, data) in body.3.attn.{wq, wk}
  recompute body.* keep [attn.attend, mlp.gate]
  recompute norm keep []
  shard seq over tensor elsewhere
  zero 2 over data
  zero 3 over (data, tensor) in head
  offload body.*.mlp
  pipeline: 1f1b
  context: ring
  microbatches: 4
}

schedule plain {
  shard batch over data
  budget: 40GiB
  microbatches: 4M tokens
}

checkpoint hf for tiny {
  embedding <-> "wte.weight" = "head.weight" : [vocab, embed]
  body[i].attn.{wq, wk} <-> "h.{i}.qk" : [embed, (heads head_dim) + (heads head_dim)]
  body[i].attn.wo <-> "h.{i + 1}.wo" : [out.embed, (heads 2 pairs)] where head_dim = (pairs 2)
  body[0].mlp <-> "mlp.0" : mlp  # by another section
  scale <-> "scale" : []
  ignore "h.{i}.bias"

  config {
    embed = text_config.n_embd
    "act" = "silu"
  }
}

adapter code on tiny {
  freeze *
  tune body.*.{attn_norm, mlp_norm}.scale
  lora body.*.attn.{wq, wk} {
    rank: 16
    dropout: 0.05
  }
}

require heads % head_dim != 0

target a100 {
  memory_gib: 80
}
"""
"""One file with every construct of the language, in canonical form."""

HEAD = "fllm 1\n\n"
