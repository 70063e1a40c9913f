"""A run small enough for a test: a two-layer model on a text of a few kilobytes."""

from __future__ import annotations

import hashlib
import sys
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch
from msgspec import structs
from torch import Tensor

from fllmc.driver import Compiled, compile_spec
from fllmc.ir.plan import Plan
from fllmc.runtime.checkpoint.load import open_latest
from fllmc.runtime.launch import launch
from fllmc.runtime.options import Options

SPEC = """fllm 1

import "library/transformer.fllm" (norm, layer)

dims {
  batch
  seq
  vocab
  embed = 16
  heads = 4
  kv_heads = 2
  ffn = 32
  layers = 2
}

model small(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed = normal(std: 0.02)
  param head: embed -> vocab
  sub final_norm: norm
  stack body: layer over layers

  return head(final_norm(body(embedding(tokens))))
}

data text {
  source: "text.txt"
  batch: 8
  seq: 16
}

train run: small {
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.99), eps: 1e-8, weight_decay: 0.1)
  no_decay: [*.scale, embedding]
  rate: cosine(peak: 1e-2, floor: 1e-3, warmup: 2)
  clip: 1.0
  steps: 6
  checkpoint_every: 2
  log_every: 1
  sample: text(prompt: "ab", tokens: 8, temperature: 0.7)
}

schedule placed for run {
  shard batch over data
  shard (heads, kv_heads, ffn, vocab) over tensor
  microbatches: MICROBATCHES
}
"""


class Made(NamedTuple):
    """A compiled run and the folder of its text."""

    plan: Plan
    source: str
    folder: Path


def text(length: int = 6000) -> bytes:
    """Letters in which each depends on the one before, so that there is something to learn."""
    letters, state = b"abcdefgh \n", 0
    out = bytearray()
    for n in range(length):
        noise = hashlib.sha256(n.to_bytes(4, "little")).digest()[0]
        state = (state * 3 + 1 + (noise < 60)) % len(letters)
        out.append(letters[state])
    return bytes(out)


@lru_cache(maxsize=16)
def _compiled(folder: Path, mesh: str, microbatches: int) -> Compiled:
    spec = folder / "small.fllm"
    spec.write_text(SPEC.replace("MICROBATCHES", str(microbatches)))
    return compile_spec(str(spec), mesh)


def made(folder: Path, mesh: str = "", microbatches: int = 1, **train: float) -> Made:
    """The run compiled for a mesh, with fields of its `train` section replaced."""
    (folder / "text.txt").write_bytes(text())
    compiled = _compiled(folder, mesh, microbatches)
    settings = structs.replace(compiled.plan.train, **train)
    return Made(structs.replace(compiled.plan, train=settings), compiled.source, folder)


def compile_in(folder: Path, spec: str, mesh: str = "") -> Made:
    """A run of this spec, compiled beside its text."""
    (folder / "text.txt").write_bytes(text())
    (folder / "small.fllm").write_text(spec.replace("MICROBATCHES", "1"))
    compiled = compile_spec(str(folder / "small.fllm"), mesh)
    return Made(compiled.plan, compiled.source, folder)


def options(folder: Path, name: str, **given: object) -> Options:
    """Quiet options for a run below the folder."""
    chosen: dict[str, object] = {"folder": str(folder / name), "quiet": True, "base": "/"}
    return structs.replace(Options(), **{**chosen, **given})


def go(run: Made, name: str, **given: object) -> int:
    """Launch the run in the folder `name`; the exit status."""
    return launch(run.plan, run.source, options(run.folder, name, **given))


def tensors(folder: Path) -> dict[str, Tensor]:
    """Everything in a run's newest checkpoint."""
    checkpoint = open_latest(folder / "checkpoints").checkpoint
    return {name: checkpoint.read(name) for name in checkpoint.names()}


def step_of(folder: Path) -> int:
    """The step of a run's newest checkpoint."""
    return open_latest(folder / "checkpoints").checkpoint.position.step


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    """Equal to the last bit."""
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def main() -> None:
    """`small_run.py FOLDER MESH NAME STEPS [resume]`: a run in a process of its own."""
    folder, mesh, name, steps, *rest = sys.argv[1:]
    run = made(Path(folder), mesh, steps=int(steps))
    sys.exit(go(run, name, resume=rest == ["resume"]))


if __name__ == "__main__":
    main()
