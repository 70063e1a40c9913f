"""A run saved with parameters trained goes on with them frozen, and the other way round."""

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fllmc.driver import Compiled, compile_spec
from fllmc.ir.diagnostics import Diagnostic
from fllmc.runtime.checkpoint.load import open_checkpoint, open_latest
from fllmc.runtime.checkpoint.names import STATE_MARK
from fllmc.runtime.checkpoint.save import alone, save
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import view_of
from fllmc.runtime.parts import expected, lasting_parts
from fllmc.runtime.resuming import restore_run
from fllmc.runtime.statuses import BAD_INPUT, SUCCESS
from tests.runtime.small_run import SPEC, Made, assert_same, go, step_of, tensors, text
from tests.runtime.stored import faults, owned, position

ADAPTER = """adapter changed on small {
  freeze *
  tune final_norm
  tune head
}

train run: changed {
  precision: policy(params: f32, compute: bf16, reduce: f32)"""
TRAINED = "train run: small {\n  precision: policy(params: f32, compute: bf16, reduce: f32)"
TUNED = ("final_norm.scale", "head")


@lru_cache
def _compiled(folder: Path, frozen: bool, mesh: str) -> Compiled:
    spec = folder / "small.fllm"
    train = ADAPTER if frozen else TRAINED
    changed = SPEC.replace("train run: small {", train).replace("MICROBATCHES", "1")
    spec.write_text(changed)
    return compile_spec(str(spec), mesh)


def made(folder: Path, frozen: bool, mesh: str = "") -> Made:
    """The run with its embedding and layers frozen, or trained."""
    (folder / "text.txt").write_bytes(text())
    compiled = _compiled(folder, frozen, mesh)
    return Made(compiled.plan, compiled.source, folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs here, so that each plan is compiled once."""
    return tmp_path_factory.mktemp("thaw")


def restored(run: Made, name: str) -> tuple[dict[str, Tensor], tuple[Diagnostic, ...]]:
    """What the ranks of a plan read from a run's checkpoint, put together; and rank 0's warnings.

    NaN where no rank has filled anything in.
    """
    folder = run.folder / name
    latest = open_latest(folder / "checkpoints").checkpoint
    whole = {
        name: torch.full(shape, torch.nan, dtype=torch.bfloat16 if dtype == "bf16" else None)
        for name, (dtype, shape) in expected(run.plan).items()
    }
    warnings: tuple[Diagnostic, ...] = ()
    for rank in range(run.plan.program.mesh.size):
        executor = Executor(run.plan, run.source, rank, object())  # type: ignore[arg-type]
        parts = lasting_parts(run.plan, rank)
        gather = alone if rank == 0 else lambda _: [latest.path.name]
        facts = dict(latest.position.facts)
        for part in parts:
            view_of(part, executor).fill_(7.0)
        resumed = restore_run(folder, run.plan, facts, executor, parts, rank=rank, gather=gather)
        warnings += resumed.warnings
        for part in parts:
            whole[part.name][part.slices] = view_of(part, executor)
    return whole, warnings


@pytest.mark.parametrize("mesh", ["", "2x2"])
def test_trained_goes_on_frozen(place: Path, mesh: str) -> None:
    assert go(made(place, frozen=False), f"trained{mesh}", steps=2) == SUCCESS
    kept = tensors(place / f"trained{mesh}")
    whole, warnings = restored(made(place, True, mesh), f"trained{mesh}")
    tuned = {name for name in kept if name.partition(STATE_MARK)[0] in TUNED}
    frozen = {name for name in kept.keys() - tuned if STATE_MARK not in name}
    assert whole.keys() == tuned | frozen and len(tuned) == 6
    assert_same({name: kept[name] for name in tuned}, {name: whole[name] for name in tuned})
    assert {whole[name].dtype for name in frozen} == {torch.bfloat16}
    assert_same(
        {name: kept[name].bfloat16() for name in frozen}, {name: whole[name] for name in frozen}
    )
    assert [warning.code for warning in warnings] == ["W0702", "W0704"]
    assert f"{len(frozen)} parameter(s)" in warnings[0].message()
    assert "f32 to bf16" in warnings[0].message()
    assert f"{2 * len(frozen)} optimizer state(s)" in warnings[1].message()


@pytest.mark.parametrize("mesh", ["", "2x2"])
def test_frozen_goes_on_trained(place: Path, mesh: str) -> None:
    assert go(made(place, frozen=True), f"frozen{mesh}", steps=2) == SUCCESS
    kept = tensors(place / f"frozen{mesh}")
    trained = made(place, False, mesh)
    whole, warnings = restored(trained, f"frozen{mesh}")
    assert whole.keys() == expected(trained.plan).keys()
    begun = {name for name in whole if STATE_MARK in name} - kept.keys()
    assert len(begun) == 2 * sum(value.dtype == torch.bfloat16 for value in kept.values())
    assert all(torch.equal(whole[name], torch.zeros_like(whole[name])) for name in begun)
    others = {name: value for name, value in whole.items() if name not in begun}
    assert_same({name: value.float() for name, value in kept.items()}, others)
    assert [warning.code for warning in warnings] == ["W0702", "W0703"]
    assert "bf16 to f32" in warnings[0].message()
    assert f"{len(begun)} optimizer state(s)" in warnings[1].message()


def test_the_same_plan_changes_nothing_and_says_nothing(place: Path) -> None:
    for frozen in (False, True):
        assert go(made(place, frozen), f"same{frozen}", steps=1) == SUCCESS
        whole, warnings = restored(made(place, frozen, "2x2"), f"same{frozen}")
        assert_same(tensors(place / f"same{frozen}"), whole)
        assert warnings == ()


def test_a_run_goes_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frozen, trained = made(place, frozen=True), made(place, frozen=False)
    assert go(trained, "both", steps=2) == SUCCESS
    capsys.readouterr()
    assert go(frozen, "both", steps=4, resume=True, quiet=False) == SUCCESS
    told = capsys.readouterr().err
    assert [told.count(f"warning[W070{n}]") for n in (2, 3, 4)] == [1, 0, 1]
    assert "resumed at step 2" in told and step_of(place / "both") == 4
    assert tensors(place / "both").keys() == expected(frozen.plan).keys()
    before = tensors(place / "both")["body.1.attn.wq"]
    assert go(trained, "both", steps=6, resume=True, quiet=False) == SUCCESS
    told = capsys.readouterr().err
    assert [told.count(f"warning[W070{n}]") for n in (2, 3, 4)] == [1, 1, 0]
    after = tensors(place / "both")
    assert after.keys() == expected(trained.plan).keys()
    assert not torch.equal(after["body.1.attn.wq"], before.float())


def test_an_adapter_with_parameters_of_its_own_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(made(place, frozen=False), "low", steps=1) == SUCCESS
    spec = place / "low.fllm"
    train = ADAPTER.replace("tune head", "lora body.*.attn.wq {\n    rank: 2\n  }")
    spec.write_text(SPEC.replace("train run: small {", train).replace("MICROBATCHES", "1"))
    compiled = compile_spec(str(spec), "")
    assert go(Made(compiled.plan, compiled.source, place), "low", resume=True) == BAD_INPUT
    assert "E0708" in capsys.readouterr().err


def test_what_is_not_freezing_stays_a_fault(tmp_path: Path) -> None:
    held = {name: torch.ones(4, 2) for name in ("w", "w#m", "w#v", "gone", "gone#m")}
    path = save(tmp_path, position(1), [owned(name, value) for name, value in held.items()], keep=0)
    plan = {"w": ("bf16", (4, 2)), "w#m": ("bf16", (4, 2)), "new": ("f32", (4, 2))}
    plan |= {"new#m": ("f32", (4, 2)), "w#z": ("f32", (4, 2))}
    with open_checkpoint(path) as checkpoint:
        found = {(d.code, d.message().split("`")[3]) for d in checkpoint.faults(plan)}
        missing = {("E0708", "new"), ("E0708", "new#m")}
        assert found == {("E0707", "w#m"), ("E0709", "gone"), ("E0709", "gone#m")} | missing
        changes = checkpoint.changes(plan)
        assert changes.converted == {"w": "f32 to bf16"}
        assert (changes.begun, changes.dropped) == (("w#z",), ("w#v",))
        for kind in (("bf16", (2, 4)), ("i32", (4, 2)), ("bool", (4, 2))):
            assert checkpoint.faults({"w": kind})[0].code == "E0707"
        whole = plan | dict.fromkeys(held, ("f32", (4, 2)))
        (first, *_) = faults(lambda: checkpoint.require(whole))
        assert first.code == "E0708"
