"""Minimal specs on which a pass was wrong once, most of them found with `random_specs`."""

from __future__ import annotations

from collections.abc import Mapping

from tests.specs.random_specs import OPTIMIZERS, Drawn

MODEL = """fllm 1

dims {
  batch
  seq
  vocab = 3
  embed = 2
}

model net(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.5)
  param head: embed -> vocab

  return head(VALUE)
}
ADAPTER
data text {
  source: "text"
  tokenizer: "t.json"
  batch: 2
  seq: 2
}

train run: SUBJECT {
  data: text
  loss: cross_entropy()
  optimizer: OPTIMIZER
  rate: constant(peak: 0.1)
  steps: 5
  precision: PRECISION
}

schedule placed for run {
  shard batch over data
}
"""
LORA = """
adapter tuned on net {
  freeze *
  lora embedding {
    rank: 2
  }
}
"""
SGD, LION = OPTIMIZERS[3], OPTIMIZERS[4]


def small(
    mesh: str = "",
    value: str = "embedding(tokens)",
    adapter: str = "",
    optimizer: str = SGD,
    precision: str = "f64",
) -> Drawn:
    """A spec with a model of two arrows."""
    text = MODEL.replace("VALUE", value).replace("ADAPTER", adapter)
    text = text.replace("SUBJECT", "tuned" if adapter else "net")
    text = text.replace("OPTIMIZER", optimizer).replace("PRECISION", precision)
    return Drawn(text, mesh, optimizer)


FOUND: Mapping[str, Drawn] = {
    # A choice between two scalars by a tensor was a tensor in f64 among others in f32.
    "lion in f32": small(optimizer=LION, precision="f32"),
    # The update of a lookup was in the parameters' dtype, what it is added to in that of compute.
    "update of a lookup in bf16": small(
        adapter=LORA, precision="policy(params: f32, compute: bf16, reduce: f32)"
    ),
    "silu on a mesh": small(mesh="data=2", value="silu(embedding(tokens))"),
}
