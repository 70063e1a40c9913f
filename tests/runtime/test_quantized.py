"""A quantised base: begun, saved, resumed, read from and into full precision, and merged."""

from __future__ import annotations

from functools import lru_cache
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fllmc.driver import Compiled, compile_spec
from fllmc.ir.codebooks import most_moved
from fllmc.ir.diagnostics import Diagnostic
from fllmc.runtime import coding
from fllmc.runtime.checkpoint.coded import dequantized, held_as_codes, names_of
from fllmc.runtime.checkpoint.load import open_latest
from fllmc.runtime.checkpoint.save import alone, save
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import initialise, view_of
from fllmc.runtime.parts import expected, lasting_parts, parameter_count
from fllmc.runtime.resuming import restore_run
from fllmc.runtime.statuses import SUCCESS
from tests.cli.running import run
from tests.runtime.small_run import SPEC, Made, assert_same, go, tensors, text
from tests.runtime.stored import faults, owned, position

ADAPTER = """adapter changed on small {
  freeze *
  lora body.*.attn.{wq, wo} {
    rank: 2
    alpha: 3
  }
QUANTIZE}

train run: changed {
  precision: policy(params: f32, compute: f32, reduce: f32)"""
ZERO_3 = "shard batch over data\n  zero 3 over data"
MAPS = 9


@lru_cache
def _compiled(folder: Path, bits: int, mesh: str, zero: bool, block: int) -> Compiled:
    line = f"  quantize * {{\n    bits: {bits}\n    block: {block}\n  }}\n" if bits < 32 else ""
    adapter = ADAPTER.replace("QUANTIZE", line)
    changed = SPEC.replace("train run: small {", adapter).replace("MICROBATCHES", "1")
    if zero:
        changed = changed.replace("shard batch over data", ZERO_3)
    spec = folder / "small.fllm"
    spec.write_text(changed)
    return compile_spec(str(spec), mesh)


def made(folder: Path, bits: int, mesh: str = "", zero: bool = False, block: int = 4) -> Made:
    """The run with its base in so many bits; 32 for as it is."""
    (folder / "text.txt").write_bytes(text())
    compiled = _compiled(folder, bits, mesh, zero, block)
    return Made(compiled.plan, compiled.source, folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs here, so that each plan is compiled once."""
    return tmp_path_factory.mktemp("quantized")


def begun(run: Made) -> dict[str, Tensor]:
    """What all ranks of a plan begin with, put together."""
    whole: dict[str, Tensor] = {}
    for rank in range(run.plan.program.mesh.size):
        executor = Executor(run.plan, run.source, rank, object())  # type: ignore[arg-type]
        parts = lasting_parts(run.plan, rank)
        initialise(run.plan, executor, parts)
        for part in parts:
            value = view_of(part, executor)
            empty = torch.full(part.shape, 77, dtype=value.dtype)
            whole.setdefault(part.name, empty)[part.slices] = value
    return whole


def value_of(held: dict[str, Tensor], name: str) -> Tensor:
    """What codes and scales stand for, or the tensor itself."""
    return held[name] if name in held else dequantized(*(held[part] for part in names_of(name)))


def near(found: Tensor, wanted: Tensor, scales: Tensor, bits: int) -> bool:
    """Whether no element is further off than rounding may move it."""
    at = next(d for d in range(wanted.dim()) if wanted.shape[d] != scales.shape[d])
    largest = scales.repeat_interleave(wanted.shape[at] // scales.shape[at], dim=at)
    largest = largest * (127 if bits == 8 else 1)
    return bool(((found - wanted).abs() <= most_moved(bits) * largest * (1 + 1e-6)).all())


@pytest.mark.parametrize("bits", [4, 8])
def test_it_begins_as_the_codes_of_what_it_would_begin_with(place: Path, bits: int) -> None:
    plain, found = begun(made(place, 32)), begun(made(place, bits))
    coded = {name for name in plain if value_of(found, name) is not found.get(name)}
    assert len(coded) == 2 + 7 * 2
    for name, wanted in plain.items():
        if name in coded:
            assert near(value_of(found, name), wanted, found[names_of(name)[1]], bits), name
        else:
            assert torch.equal(found[name], wanted)


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_it_begins_alike_on_any_mesh(
    place: Path, bits: int, zero: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = begun(made(place, bits))
    monkeypatch.setattr(coding, "_AT_ONCE", 64)  # so that parts are made piece by piece
    assert_same(wanted, begun(made(place, bits, "2x2", zero)))


def test_parameters_are_counted_as_without_codes(place: Path) -> None:
    assert parameter_count(made(place, 4).plan) == parameter_count(made(place, 32).plan)
    assert parameter_count(made(place, 8).plan) == parameter_count(made(place, 32).plan)


@pytest.mark.parametrize("bits", [4, 8])
def test_a_run_goes_on_bit_for_bit(place: Path, bits: int) -> None:
    run = made(place, bits)
    assert go(run, f"straight{bits}", steps=4) == SUCCESS
    assert go(run, f"halves{bits}", steps=2) == SUCCESS
    assert go(run, f"halves{bits}", steps=4, resume=True) == SUCCESS
    assert_same(tensors(place / f"straight{bits}"), tensors(place / f"halves{bits}"))
    assert tensors(place / f"straight{bits}").keys() == expected(run.plan).keys()


def restored(run: Made, folder: Path) -> tuple[dict[str, Tensor], list[str]]:
    """What the ranks of a plan read from a run's checkpoint, and the codes of warnings."""
    latest = open_latest(folder / "checkpoints").checkpoint
    whole: dict[str, Tensor] = {}
    said: list[Diagnostic] = []
    for rank in range(run.plan.program.mesh.size):
        executor = Executor(run.plan, run.source, rank, object())  # type: ignore[arg-type]
        parts = lasting_parts(run.plan, rank)
        gather = alone if rank == 0 else lambda _: [latest.path.name]
        facts = dict(latest.position.facts)
        resumed = restore_run(folder, run.plan, facts, executor, parts, rank=rank, gather=gather)
        said += resumed.warnings
        for part in parts:
            value = view_of(part, executor)
            empty = torch.full(part.shape, 77, dtype=value.dtype)
            whole.setdefault(part.name, empty)[part.slices] = value
    return whole, [each.code for each in said]


@pytest.mark.parametrize(("mesh", "zero"), [("", False), ("2x2", True)])
@pytest.mark.parametrize("bits", [4, 8])
def test_a_checkpoint_in_full_is_quantised(place: Path, bits: int, mesh: str, zero: bool) -> None:
    if not (place / "full").exists():
        assert go(made(place, 32), "full", steps=2) == SUCCESS
    kept = tensors(place / "full")
    found, said = restored(made(place, bits, mesh, zero), place / "full")
    assert said == ["W0705"]
    assert found.keys() == expected(made(place, bits).plan).keys()
    fresh = begun(made(place, bits))  # frozen maps are still what they began with
    for name, value in found.items():
        assert torch.equal(value, kept[name] if name in kept else fresh[name]), name


@pytest.mark.parametrize(("mesh", "zero"), [("", False), ("2x2", True)])
def test_a_quantised_checkpoint_is_read_in_full(place: Path, mesh: str, zero: bool) -> None:
    if not (place / "few").exists():
        assert go(made(place, 4), "few", steps=2) == SUCCESS
    kept = tensors(place / "few")
    found, said = restored(made(place, 32, mesh, zero), place / "few")
    assert said == ["W0706"]
    assert found.keys() == expected(made(place, 32).plan).keys()
    for name, value in found.items():
        assert torch.equal(value, value_of(kept, name)), name


@pytest.mark.parametrize(("bits", "block"), [(8, 4), (4, 8)])
def test_codes_of_another_kind_are_refused(place: Path, bits: int, block: int) -> None:
    if not (place / "few").exists():
        assert go(made(place, 4), "few", steps=2) == SUCCESS
    other = made(place, bits, block=block)
    found = faults(lambda: restored(other, place / "few"))
    assert {each.code for each in found} == {"E0707"}


def test_shapes_of_parameters_follow_from_those_of_their_codes(place: Path) -> None:
    wanted = {name: shape for name, (_, shape) in expected(made(place, 32).plan).items()}
    for bits, block in ((4, 4), (8, 4), (4, 8)):
        found = held_as_codes(expected(made(place, bits, block=block).plan))
        assert len(found) == 16 and all(wanted[name] == shape for name, shape in found.items())
    assert prod(wanted["head"]) > 0


def test_merging_writes_the_base_in_full_with_its_updates(place: Path) -> None:
    output, spec = place / "merged", place / "small.fllm"
    made(place, 4)
    _compiled.cache_clear()  # the spec is written anew
    made(place, 4)
    done = run("run", str(spec), "-o", str(output), "--steps", "2", "--threads", "1", "-q")
    assert done.exit_code == 0, done.stderr
    kept = tensors(output)
    out = place / "merged.safetensors"
    assert run("merge", str(output), "--out", str(out)).exit_code == 0
    found = load_file(out)
    plain = {name for name in expected(made(place, 32).plan) if "lora" not in name}
    assert found.keys() == {name for name in plain if "#" not in name}
    for name, value in found.items():
        wanted = value_of(kept, name).double()
        if f"{name}.lora_a" in kept:
            a, b = (kept[f"{name}.lora_{part}"].double() for part in "ab")
            wanted = wanted + 1.5 * torch.tensordot(a, b, dims=1)
        torch.testing.assert_close(value, wanted.float(), rtol=1e-6, atol=1e-7)
    undone = place / "undone.safetensors"
    assert run("merge", str(output), "--undo", str(out), "--out", str(undone)).exit_code == 0
    for name, value in load_file(undone).items():
        torch.testing.assert_close(value, value_of(kept, name), rtol=1e-6, atol=1e-7)


def test_a_tensor_that_is_only_called_so_is_no_code(tmp_path: Path) -> None:
    """Of a model's own parameter `codes`, in floating point."""
    shards = [owned("a.codes", torch.ones(2, 4)), owned("a.scales", torch.ones(2, 2))]
    save(tmp_path / "checkpoints", position(1), shards)
    checkpoint = open_latest(tmp_path / "checkpoints").checkpoint
    kinds = {n: (e.dtype, e.shape) for n, e in checkpoint.manifest.tensors.items()}
    assert held_as_codes(kinds) == {}
    changes = checkpoint.changes({"a": ("f32", (2, 4))})
    assert changes.dequantized == () and changes.used_up == set()
