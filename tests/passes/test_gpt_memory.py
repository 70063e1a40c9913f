"""Kept bytes of the usual GPT layer, and the memory of published runs, equal their closed forms."""

from __future__ import annotations

import csv
from fractions import Fraction
from pathlib import Path

import pytest

from fllmc.passes.gpt_memory import (
    Recomputed,
    Shape,
    Split,
    activation_bytes,
    layer_bytes,
    layers_held,
    state_bytes,
)
from tests.passes.gpt_layer import EVERYTHING, SELECTIVE, compiled, kept

ROWS = Path(__file__).parents[1] / "data" / "korthikanti_fig1_mem.csv"
GIB = 2**30
KEEP: dict[Recomputed, str] = {
    "none": f"  recompute body.* keep [{', '.join(EVERYTHING)}]",
    "selective": f"  recompute body.* keep [{', '.join(SELECTIVE)}]",
    "full": "  recompute body.*",
}
MEGATRON = "  shard (heads, ffn) over tensor\n"
SEQUENCE = "  shard seq over tensor elsewhere\n"
SHAPES = [Shape(16, 2, 32, 4, 3), Shape(24, 3, 64, 8, 3), Shape(128, 1, 16, 8, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("tensor", "sequence"), [(1, False), (2, False), (4, False), (2, True), (4, True)]
)
@pytest.mark.parametrize("recomputed", list(KEEP))
def test_a_layer_keeps_what_the_closed_form_says(
    shape: Shape, tensor: int, sequence: bool, recomputed: Recomputed
) -> None:
    mesh = f"tensor={tensor}" if tensor > 1 else ""
    lines = (MEGATRON + SEQUENCE * sequence if mesh else "") + KEEP[recomputed]
    plan = compiled(shape.s, shape.b, shape.h, shape.a, lines, mesh)
    found, split = kept(plan), Split(tensor, sequence=sequence)
    assert sum(size for _, size in found) == layer_bytes(shape, split, recomputed), found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_forms_are_those_of_the_paper(shape: Shape) -> None:
    s, b, h, a = shape.s, shape.b, shape.h, shape.a
    for t in (1, 2, 8):
        apart, along = Split(t), Split(t, sequence=True)
        five = Fraction(5 * a * s, h)
        assert layer_bytes(shape, apart, "none") == s * b * h * (10 + Fraction(24, t) + five / t)
        assert layer_bytes(shape, along, "none") == s * b * h * (34 + five) / t
        assert layer_bytes(shape, along, "selective") == Fraction(34 * s * b * h, t)
        assert layer_bytes(shape, apart, "full") == 2 * s * b * h


@pytest.mark.parametrize("row", list(csv.DictReader(ROWS.open())), ids=lambda row: row["model"])
def test_published_memory(row: dict[str, str]) -> None:
    sizes = [int(row[name]) for name in ("seq", "micro_batch", "hidden", "heads", "layers")]
    shape = Shape(*sizes)
    split = Split(
        int(row["tensor"]), int(row["pipe"]), int(row["chunks"]), row["sequence"] == "yes"
    )
    recomputed = next(each for each in KEEP if each == row["recompute"])
    states, held = state_bytes(shape, split), activation_bytes(shape, split, recomputed)
    assert states == Fraction(row["state_gib"]) * GIB
    assert held == Fraction(row["activation_gib"]) * GIB
    assert abs((states + held) / GIB - Fraction(row["total_gib"])) <= Fraction(1, 2_000_000)


def test_without_a_pipeline_a_rank_holds_its_own_layers() -> None:
    shape = Shape(8, 1, 8, 2, 12)
    assert layers_held(shape, Split()) == layers_held(shape, Split(pipe=4)) == 12
    assert layers_held(shape, Split(pipe=4, chunks=3)) == 12 * (1 + Fraction(3, 12))
