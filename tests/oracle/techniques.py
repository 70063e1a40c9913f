"""Techniques of distributed training as pieces of a spec, which combine into one spec and mesh.

A technique says which mesh axes it needs, which lines it adds to the schedule and to the adapter,
and what it must not stand beside. `combined` puts several together: axes in the order of AXES, the
batch over all axes that divide data.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple

from tests.oracle.compiled import Case

AXES = ("pipe", "data", "fsdp", "expert", "context", "tensor")
"""Outermost first."""
BATCH_AXES = ("data", "fsdp", "expert")
DEVICES = 8
BATCH = 16


class Technique(NamedTuple):
    """What a technique adds. `kind` tells apart those that exclude each other, if not empty.

    `model` is the one that it needs, if not any will do. The lines of one that is `kept` stand in
    the schedule of one device too: they decide what the backward pass reads.
    """

    axes: Mapping[str, int] = {}
    schedule: tuple[str, ...] = ()
    adapter: tuple[str, ...] = ()
    kind: str = ""
    microbatches: int = 1
    model: str = ""
    kept: bool = False


def pipelined(schedule: str, ranks: int = 2) -> Technique:
    """The stack over `pipe`."""
    lines = ("shard layers over pipe", f"pipeline: {schedule}")
    return Technique({"pipe": ranks}, lines, kind="pipe", microbatches=4)


def context(way: str) -> Technique:
    """Sequences over `context`."""
    lines = ("shard seq over context", f"context: {way}")
    return Technique({"context": 2}, lines, kind="context")


def zero(stage: int) -> Technique:
    """State divided over `fsdp`."""
    return Technique({"fsdp": 2}, (f"zero {stage} over fsdp",), kind="fsdp")


def quantised(bits: int, selector: str) -> Technique:
    """Low-rank updates beside maps in few bits."""
    lines = (
        "freeze *",
        "lora body.*.attn.{wq, wv, wo} {\n    rank: 4\n    alpha: 8\n  }",
        f"quantize {selector} {{\n    bits: {bits}\n    block: 4\n  }}",
    )
    return Technique(adapter=lines, kind="adapter")


TENSOR = "shard (heads, kv_heads, ffn, vocab) over tensor"

TECHNIQUES: Mapping[str, Technique] = {
    "data": Technique({"data": 2}),
    "tensor": Technique({"tensor": 2}, (TENSOR,), kind="tensor"),
    "sequence": Technique(
        {"tensor": 2}, (TENSOR, "shard seq over tensor elsewhere"), kind="tensor"
    ),
    "context gather": context("gather"),
    "context ring": context("ring"),
    "context exchange": context("exchange"),
    "experts": Technique(
        {"expert": 2}, ("shard experts over expert",), (), "expert", 1, "tiny_moe"
    ),
    "zero 1": zero(1),
    "zero 2": zero(2),
    "zero 3": zero(3),
    "gpipe": pipelined("gpipe"),
    "1f1b": pipelined("1f1b"),
    "interleaved": pipelined("interleaved(chunks: 2)"),
    "breadth first": pipelined("breadth_first(chunks: 2)"),
    "zb-h1": pipelined("zb_h1"),
    "zb-v": pipelined("zb_v"),
    "auto": pipelined("auto(memory: 1.5)"),
    "four stages": pipelined("1f1b", 4),
    "accumulate": Technique(microbatches=4),
    "recompute": Technique(schedule=("recompute body.* keep [attn.attend]",), kept=True),
    "compress": Technique(schedule=("compress body.*",), kept=True),
    "offload": Technique(schedule=("offload body.*.attn",)),
    # 1.7 MiB: tight on one device, where values wait on the host too, and enough on every mesh.
    "budget": Technique(schedule=("budget_gib: 0.00169",)),
    # On the first rank, which has four micro-batches in flight, the same is little again.
    "budget in pipeline": Technique(
        {"pipe": 2},
        ("shard layers over pipe", "pipeline: gpipe", "budget_gib: 0.00169"),
        kind="pipe",
        microbatches=4,
    ),
    "transfers in order": Technique(schedule=("overlap: off",)),
    "loss chunks": Technique(schedule=("loss_chunks: 2",)),
    "backward chunks": Technique(schedule=("backward_chunks: 2",)),
    "frozen": Technique(
        adapter=("freeze embedding", "freeze body.*.attn.{wq, wk}", "freeze body.*.attn_norm")
    ),
    "rows": Technique(
        adapter=(
            "freeze embedding {\n    rows: (0, 100)\n  }",
            "freeze head {\n    rows: (3, 9)\n  }",
            "freeze body.*.attn.wq {\n    rows: (0, 5)\n  }",
            "freeze body.*.attn.wo {\n    rows: (4, 8)\n  }",
            "freeze body.*.attn_norm {\n    rows: (4, 7)\n  }",
        )
    ),
    "frozen stack": Technique(adapter=("freeze *", "tune head", "tune final_norm"), kind="adapter"),
    "lora": Technique(
        adapter=(
            "freeze *",
            "lora body.*.attn.{wq, wv, wo} {\n    rank: 4\n    alpha: 8\n  }",
            "lora body.*.attn.wk {\n    rank: 2\n    alpha: 4\n  }",
        ),
        kind="adapter",
    ),
    "4 bits": quantised(4, "*"),
    "8 bits": quantised(8, "body.*"),
}

SPEC = """fllm 1

import "models/MODEL.fllm" (MODEL)

dims {
  vocab = 256
  embed = 16
  heads = 8
  kv_heads = 4
  head_dim = 6
  ffn = 16
  layers = 6
}
ADAPTER
data text {
  source: "builtin:pydocs"
  batch: BATCH
  seq: 8
}

train run: SUBJECT {
  data: text
  loss: cross_entropy(z_loss: 1e-3)
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)
  no_decay: [*.scale]
  rate: cosine(peak: 1e-2, floor: 1e-3, warmup: 2)
  clip: 0.5
  steps: 5
  precision: policy(params: DTYPE, compute: DTYPE, reduce: DTYPE)
}

schedule placed for run {
SCHEDULE
}
"""


def fits(names: Iterable[str]) -> bool:
    """Whether these can stand together: one of a kind, enough samples, at most DEVICES."""
    chosen = [TECHNIQUES[name] for name in names]
    mesh = axes(chosen)
    samples = BATCH // max(1, *(each.microbatches for each in chosen))
    even = samples % math.prod(mesh.get(name, 1) for name in BATCH_AXES) == 0
    kinds = [each.kind for each in chosen if each.kind]
    frozen = [each for each in chosen if each.adapter]
    alike = len(set(kinds)) == len(kinds) and len(frozen) <= 1
    return alike and even and math.prod(mesh.values()) <= DEVICES


def axes(chosen: Iterable[Technique]) -> dict[str, int]:
    """The mesh that they need together."""
    wanted = {name: extent for each in chosen for name, extent in each.axes.items()}
    return {name: wanted[name] for name in AXES if name in wanted}


def model_of(names: Sequence[str]) -> str:
    """The model that these techniques are tried on."""
    return next((TECHNIQUES[n].model for n in names if TECHNIQUES[n].model), "llama3_8b")


def spec_text(names: Sequence[str], dtype: str, model: str) -> str:
    """The spec of a model with these techniques."""
    chosen = [TECHNIQUES[name] for name in names]
    mesh = axes(chosen)
    batch = [name for name in BATCH_AXES if name in mesh]
    lines = [f"shard batch over ({', '.join(batch)})"] if batch else []
    lines += [line for each in chosen for line in each.schedule]
    lines.append(f"microbatches: {max([1, *(each.microbatches for each in chosen)])}")
    adapted = [line for each in chosen for line in each.adapter]
    section = "\nadapter adapted on MODEL {\n  " + "\n  ".join(adapted) + "\n}\n" if adapted else ""
    text = SPEC.replace("ADAPTER", section).replace("SUBJECT", "adapted" if adapted else "MODEL")
    text = text.replace("SCHEDULE", "\n".join(f"  {line}" for line in dict.fromkeys(lines)))
    text = text.replace("BATCH", str(BATCH))
    return text.replace("MODEL", model).replace("DTYPE", dtype)


def combined(names: Sequence[str], dtype: str = "f64", model: str = "") -> Case:
    """The case of these techniques together."""
    mesh = axes(TECHNIQUES[name] for name in names)
    shown = ",".join(f"{name}={extent}" for name, extent in mesh.items())
    text = spec_text(names, dtype, model or model_of(names))
    return Case(" + ".join(names), text, shown or "1")


def alone(names: Sequence[str], dtype: str = "f64", model: str = "") -> Case:
    """The same training on one device: what is frozen, adapted or `kept` stays, the rest goes."""
    kept = [name for name in names if TECHNIQUES[name].adapter or TECHNIQUES[name].kept]
    model = model or model_of(names)
    return Case(" + ".join([model, *kept]), spec_text(kept, dtype, model), "1")


def singles() -> list[tuple[str, ...]]:
    """Every technique."""
    return [(name,) for name in TECHNIQUES]


def pairs() -> list[tuple[str, ...]]:
    """Every two that fit."""
    return [pair for pair in combinations(TECHNIQUES, 2) if fits(pair)]


def drawn(count: int, seed: int) -> list[tuple[str, ...]]:
    """Distinct random combinations of three techniques or more."""
    source = random.Random(seed)
    found: dict[tuple[str, ...], None] = {}
    while len(found) < count:
        wanted = source.randint(3, 7)
        chosen: list[str] = []
        for name in source.sample(sorted(TECHNIQUES), len(TECHNIQUES)):
            if len(chosen) < wanted and fits([*chosen, name]):
                chosen.append(name)
        found.setdefault(tuple(n for n in TECHNIQUES if n in chosen))
    return list(found)
