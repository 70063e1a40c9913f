"""What a frozen 7B base with low-rank updates costs a rank, beside what was recorded of Fast-LLM.

    python bench/frozen.py

A Llama of 7B's shape is compiled for eight ranks, parameters whole and divided; the figures are
those of the plans, beside closed formulas. Nothing is run. They go to `bench/results/frozen.json`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from fllmc.driver import compile_spec

RESULTS = Path(__file__).resolve().parent / "results" / "frozen.json"
LAYERS, EMBED, HEADS, FFN, VOCAB, RANK = 32, 4096, 32, 11_008, 32_000, 16
SEQ, RANKS = 2048, 8
TOKENS = SEQ
"""Of one rank: a sample each."""
PER_LAYER = 4 * EMBED * EMBED + 3 * EMBED * FFN
MATRICES = LAYERS * PER_LAYER + EMBED * VOCAB
"""Elements of all that a token is multiplied with."""
PARAMETERS = MATRICES + VOCAB * EMBED + (2 * LAYERS + 1) * EMBED
ATTENTION = LAYERS * 2 * 2 * EMBED * SEQ * SEQ // 2
"""Two products of each pair of a query and a key before it."""
UPDATES = LAYERS * 4 * 2 * RANK * EMBED
"""Elements of all low-rank updates: two matrices on each of the four of attention."""

SPEC = f"""fllm 1

import "models/llama3_8b.fllm" (llama3_8b)

dims {{
  vocab = {VOCAB}
  embed = {EMBED}
  heads = {HEADS}
  kv_heads = {HEADS}
  head_dim = {EMBED // HEADS}
  ffn = {FFN}
  layers = {LAYERS}
}}

adapter tuned on llama3_8b {{
  freeze *
  lora body.*.attn.{{wq, wk, wv, wo}} {{
    rank: {RANK}
    alpha: 32
  }}
  QUANTIZED
}}

data text {{
  source: "builtin:pydocs"
  batch: {RANKS}
  seq: {SEQ}
}}

train run: tuned {{
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: cosine(peak: 1e-4)
  steps: 10
  precision: policy(params: f32, compute: bf16, reduce: f32)
}}

schedule placed for run {{
  shard batch over fsdp
  STORED
}}
"""

WHOLE, DIVIDED = "", "shard embed over fsdp in *"
BLOCK = 64
MAPS = MATRICES + VOCAB * EMBED
"""Elements of all that can be quantised: all but the scales of norms."""


def spec(stored: str = WHOLE, bits: int = 16) -> str:
    """The spec, with a line about where parameters are stored, and the bits of frozen maps."""
    text = SPEC.replace("  STORED\n", f"  {stored}\n" if stored else "")
    quantized = f"  quantize * {{\n    bits: {bits}\n    block: {BLOCK}\n  }}\n"
    return text.replace("  QUANTIZED\n", quantized if bits < 16 else "")


def stored_bytes(bits: int) -> int:
    """Bytes of the whole base: maps in codes with a scale in f32 a block, norms in 2 bytes."""
    each = MAPS * bits // 8 + (MAPS // BLOCK * 4 if bits < 16 else 0)
    return each + 2 * (PARAMETERS - MAPS)


def forward() -> int:
    """Floating-point operations of the forward pass of a rank."""
    return 2 * TOKENS * (MATRICES + UPDATES) + ATTENTION


def backward() -> int:
    """Those of the backward pass: input gradients of the base, both gradients of the updates.

    The gradient of attention has five products to its two. Of the first layer, nothing is computed
    for the input of its queries, keys and values, below which nothing trains.
    """
    lowest = 3 * EMBED * EMBED + 3 * RANK * EMBED
    return 2 * TOKENS * (MATRICES + 2 * UPDATES - lowest) + ATTENTION * 5 // 2


FIELDS = ("stored", "beside", "gradients", "moved", "calls")
FAST_LLM = {
    "version": "0.4.0 at 7d61a1ba (2026-07-20)",
    "stored_bytes_per_parameter": "2 + 4 / ranks (ZeRO-1, 2); 6 on one device",
    "stored_in_16_bit_alone": "AssertionError in multi_stage.py (measured)",
    "restores_per_step": "every frozen buffer, every step (2 of 2 measured, ZeRO-2)",
    "restores_per_step_zero_3": "9 (measured: 2 layers, 4 micro-batches)",
    "input_gradient_below_lowest_trained": "computed and not used (measured)",
    "all_frozen": "KeyError (measured)",
    "low_rank_updates": "AttributeError on any spec (measured)",
}
"""Counted on a CPU with a tiny model, or read in its source; nothing of it was run on a GPU."""


def measured(stored: str, bits: int = 16) -> dict[str, Any]:
    """The figures of one way to store parameters."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seven_b.fllm"
        path.write_text(spec(stored, bits))
        found = compile_spec(str(path), f"fsdp={RANKS}").plan.frozen
    assert found is not None
    sums = {field: sum(getattr(group, field) for group in found.groups) for field in FIELDS}
    elements = sum(group.elements for group in found.groups)
    return {
        **sums,
        **{f"full_{f}": sum(getattr(g, f"full_{f}") for g in found.groups) for f in FIELDS},
        "stored_by_formula": stored_bytes(bits) // (1 if stored == WHOLE else RANKS),
        "stored_bytes_per_parameter": sums["stored"] / elements,
        "forward_flops": found.forward,
        "forward_flops_by_formula": forward(),
        "backward_flops": found.backward,
        "backward_flops_by_formula": backward(),
        "full_backward_flops": found.full_backward,
        "kept": found.kept,
        "full_kept": found.full_kept,
        "moved_in_all": found.moved,
        "full_moved_in_all": found.full_moved,
    }


def main() -> None:
    """Compile, print and write."""
    told = {
        "frozen_parameters": PARAMETERS,
        "ranks": RANKS,
        "whole": measured(WHOLE),
        "divided": measured(DIVIDED),
        **{f"whole, {bits} bits": measured(WHOLE, bits) for bits in (8, 4)},
        **{f"divided, {bits} bits": measured(DIVIDED, bits) for bits in (8, 4)},
        "fast_llm": FAST_LLM,
    }
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(told, indent=2) + "\n")
    for way, figures in told.items():
        if isinstance(figures, dict) and way != "fast_llm":
            print(way)
            for name, value in figures.items():
                print(f"  {name:28}{value:>24,}")


if __name__ == "__main__":
    main()
