"""Context parallelism: attention along a sequence that axes divide, in each of its ways."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Attend
from fllmc.ir.program import Function, Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.settings import Context as Way
from fllmc.ir.settings import Shard, Spec
from fllmc.ir.text import print_program
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.decisions import decisions
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.ir.programs import arguments_for
from tests.oracle.small_specs import small_spec
from tests.passes.traffic import traffic

SEQUENCE = Shard(("seq",), ("context",))
MESHES = ("context=2", "context=4", "context=2,tensor=2", "data=2,context=2")
WAYS: tuple[Way, ...] = ("gather", "ring", "exchange")


@cache
def spec(model: str) -> Spec:
    """A small model with 16 tokens a sample, in 2 micro-batches."""
    text = small_spec(model, "f64", 2).replace("seq: 6", "seq: 16").replace("batch: 16", "batch: 4")
    text = text.replace("layers = 3", "layers = 2").replace("ffn = 12", "ffn = 16")
    with TemporaryDirectory() as folder:
        path = Path(folder, "small.fllm")
        path.write_text(text)
        return load_spec(str(path), {})[0]


def masked(function: Function, mask: str) -> Function:
    """The function with this mask in its attention."""
    ops = [
        replace(op, attrs=replace(op.attrs, mask=mask)) if isinstance(op.attrs, Attend) else op
        for op in function.ops
    ]
    return replace(function, ops=tuple(ops))


def compiled(
    model: str,
    mesh: Mesh,
    way: Way = "gather",
    *more: Shard,
    mask: str = "causal",
    whole: tuple[str, ...] = (),
) -> Program:
    """The program at plan level, with these dims `whole` whatever the spec's schedule says."""
    given = spec(model)
    functions = [masked(function, mask) for function in given.program.functions]
    given = replace(given, program=given.program.with_functions(*functions))
    placed = [
        replace(shard, dims=tuple(dim for dim in shard.dims if dim not in whole))
        for shard in given.schedule.shards
    ]
    shards = (*placed, SEQUENCE, *more) if mesh.size > 1 else ()
    given = replace(given, schedule=replace(given.schedule, shards=shards, context=way))
    program, _ = run_pipeline(
        given.program, standard_pipeline(given), Context(mesh, lambda _: None), lambda: 0.0
    )
    return program


def values(program: Program, entry: str) -> dict[str, np.ndarray]:
    found = arguments_for(program, 0, entry)
    positive = ("#v", "weights", "step")
    return {k: np.abs(v) if k.endswith(positive) else v for k, v in found.items()}


@cache
def expected(model: str, entry: str) -> dict[str, np.ndarray]:
    """What one device computes."""
    program = compiled(model, Mesh())
    return evaluate(program, entry, values(program, entry))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "axes", ["context=2", "context=4", "context=2,tensor=2", "data=2,context=2"]
)
@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_every_way_computes_what_one_device_does(model: str, axes: str, way: Way) -> None:
    agree(model, compiled(model, parse_mesh(axes, Mesh())[0], way))


def agree(model: str, program: Program) -> None:
    """Every entry computes what it does on one device."""
    for entry in program.entries:
        found = evaluate(program, entry, values(program, entry))
        for name, wanted in expected(model, entry).items():
            assert np.isfinite(wanted).all()
            error = np.linalg.norm(wanted - found[name])
            assert error <= 1e-11 * np.linalg.norm(wanted), (entry, name)


@pytest.mark.parametrize("way", WAYS)
def test_beside_sequence_parallelism(way: Way) -> None:
    elsewhere = Shard(("seq",), ("tensor",), elsewhere=True)
    agree("llama", compiled("llama", parse_mesh("context=2,tensor=2", Mesh())[0], way, elsewhere))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("axes", ["context=2,tensor=2", "tensor=2,context=2", "tensor=4"])
def test_a_sequence_on_an_axis_that_no_heads_are_on(axes: str, way: Way) -> None:
    mesh, elsewhere = parse_mesh(axes, Mesh())[0], Shard(("seq",), ("tensor",), elsewhere=True)
    agree("llama", compiled("llama", mesh, way, elsewhere, whole=("heads", "kv_heads")))


@pytest.mark.parametrize(
    ("axes", "way"),
    [
        ("tensor=8", "gather"),
        *((f"context=2,tensor={n}", way) for n in (4, 8) for way in WAYS),
        ("context=8", "exchange"),
    ],
)
def test_key_heads_too_few_to_be_divided_are_copied(axes: str, way: Way) -> None:
    mesh = parse_mesh(axes, Mesh())[0]
    if way == "exchange" and mesh.size > 8:  # there are 8 heads
        with pytest.raises(DiagnosticError, match="E0326"):
            compiled("llama", mesh, way)
        return
    agree("llama", compiled("llama", mesh, way))


@pytest.mark.parametrize("way", WAYS)
def test_without_a_mask_too(way: Way) -> None:
    plain = compiled("gpt", Mesh(), mask="none")
    program = compiled("gpt", parse_mesh("context=4", Mesh())[0], way, mask="none")
    assert "~" not in print_program(program)
    given = values(plain, "train")
    wanted, found = evaluate(plain, "train", given), evaluate(program, "train", given)
    for name in wanted:
        error = np.linalg.norm(wanted[name] - found[name])
        assert error <= 1e-11 * np.linalg.norm(wanted[name]), name


def test_ranks_hold_both_ends_of_what_comes_and_one_stretch_of_what_is_stored() -> None:
    program = compiled("gpt", parse_mesh("context=4", Mesh())[0])
    train = program.function("train")
    kinds = {g.name: str(k) for g, k in zip(train.inputs, train.types, strict=False)}
    assert kinds["tokens"] == "vocab[microbatches, batch, seq@context~]"
    assert kinds["place"] == kinds["place#m"] == "f64[seq, embed]"


@pytest.mark.parametrize("way", WAYS)
def test_the_plan_says_what_each_way_moves(way: Way) -> None:
    program = compiled("llama", parse_mesh("context=2,tensor=2", Mesh())[0], way)
    shards = (*spec("llama").schedule.shards, SEQUENCE)
    schedule = replace(spec("llama").schedule, shards=shards, context=way)
    (found,) = [d for d in decisions(program, schedule) if d.subject == "attn.attend along seq"]
    # Of 2 samples, 16 tokens, 8 heads, 4 key heads and 6 numbers in fp64 a rank has a half of all
    keys, queries = (2 * 16 // 2 * 6 * 8 * heads for heads in (2, 4))
    moved = {"gather": 2 * keys, "ring": 2 * keys, "exchange": keys + queries}
    held = {"gather": 4 * keys, "ring": 4 * keys, "exchange": 2 * keys}
    texts = {
        each: f"`{each}`: a rank receives {bytes_text(moved[each])} a call, and has "
        f"{bytes_text(held[each])} of keys and values"
        for each in WAYS
    }
    assert found.choice == texts[way]
    assert found.rejected == "; ".join(text for each, text in texts.items() if each != way)
    assert found.reason == f"the schedule has `context: {way}`, and `context` divides `seq`"


def test_an_exchange_moves_to_each_rank_what_it_needs() -> None:
    program = compiled("llama", parse_mesh("context=2,tensor=2", Mesh())[0], "exchange")
    found = [t for t in traffic(program) if t.entry == "train" and t.path == "attn.attend"]
    # Forward q, k, v, out and lse; backward these, d_out, and their gradients dq, dk and dv.
    assert Counter(t.kind for t in found) == {"all_to_all": 5 + 9}
    rows = 2 * 16 // 2 * 8  # 2 samples, half of 16 tokens, in fp64
    heads, keys, sums = rows * 4 * 6, rows * 2 * 6, rows * 4
    assert Counter(t.bytes for t in found) == {heads: 2 + 4, keys: 2 + 4, sums: 1 + 1}
