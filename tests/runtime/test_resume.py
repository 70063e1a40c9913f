"""A run that is interrupted anywhere goes on as if it had not been."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs

from fllmc.runtime.checkpoint.load import open_latest
from fllmc.runtime.checkpoint.save import alone
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import view_of
from fllmc.runtime.metrics import read_metrics
from fllmc.runtime.parts import expected, lasting_parts
from fllmc.runtime.resuming import restore_run
from fllmc.runtime.statuses import BAD_INPUT, SUCCESS
from tests.runtime.small_run import Made, assert_same, go, made, step_of, tensors, text


def losses(folder: Path) -> list[float]:
    """The loss of each step, as recorded."""
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


@pytest.mark.parametrize("microbatches", [1, 2])
def test_in_two_parts_as_in_one(tmp_path: Path, microbatches: int) -> None:
    run = made(tmp_path, microbatches=microbatches)
    assert go(run, "whole") == SUCCESS
    assert go(run, "parts", steps=3) == SUCCESS
    assert step_of(tmp_path / "parts") == 3
    assert go(run, "parts", resume=True) == SUCCESS
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    assert len(losses(tmp_path / "whole")) == 6


def test_where_nothing_is_left_nothing_changes(tmp_path: Path) -> None:
    run = made(tmp_path)
    assert go(run, "a") == SUCCESS
    before = tensors(tmp_path / "a")
    assert go(run, "a", resume=True) == SUCCESS
    assert_same(before, tensors(tmp_path / "a"))


@pytest.mark.parametrize("after", [5, 12])
def test_killed_at_any_step(tmp_path: Path, after: int) -> None:
    made(tmp_path)
    begun = [sys.executable, "-m", "tests.runtime.small_run", str(tmp_path), "", "killed", "40"]
    child = subprocess.Popen(begun, start_new_session=True)
    wait_for(lambda: steps_done(tmp_path / "killed") >= after, child)
    os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    run = made(tmp_path, steps=40)
    assert 0 < step_of(tmp_path / "killed") < 40
    assert go(run, "killed", resume=True) == SUCCESS
    assert go(run, "whole") == SUCCESS
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "killed"))
    assert losses(tmp_path / "whole") == losses(tmp_path / "killed")


def steps_done(folder: Path) -> int:
    """Steps that a run has recorded so far."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


def wait_for(done: Any, child: subprocess.Popen[bytes]) -> None:
    """Wait until `done()`; fail if the child ends first or a minute passes."""
    end = time.monotonic() + 60
    while not done():
        assert child.poll() is None and time.monotonic() < end
        time.sleep(0.002)


@pytest.mark.parametrize("mesh", ["2x1", "1x2", "2x2"])
def test_every_tensor_is_equal_on_another_mesh(tmp_path: Path, mesh: str) -> None:
    assert go(made(tmp_path), "a", steps=3) == SUCCESS
    kept = tensors(tmp_path / "a")
    run = made(tmp_path, mesh)
    whole = {n: torch.full(shape, torch.nan) for n, (_, shape) in expected(run.plan).items()}
    for rank in range(run.plan.program.mesh.size):
        fill_rank(run, rank, tmp_path / "a", whole)
    assert_same(kept, whole)


def fill_rank(run: Made, rank: int, folder: Path, whole: dict[str, torch.Tensor]) -> None:
    """What a rank of another mesh reads from the run's checkpoint, put into whole tensors."""
    latest = open_latest(folder / "checkpoints").checkpoint
    parts = lasting_parts(run.plan, rank)
    executor = Executor(run.plan, run.source, rank, object())  # type: ignore[arg-type]
    facts = dict(latest.position.facts)
    name = latest.path.name
    gather = alone if rank == 0 else lambda _: [name]
    done = restore_run(folder, run.plan, facts, executor, parts, rank=rank, gather=gather).done
    assert (done.step, done.samples) == (3, 24)
    for part in parts:
        whole[part.name][part.slices] = view_of(part, executor)


@pytest.mark.parametrize("mesh", ["2x1", pytest.param("2x2", marks=pytest.mark.long)])
def test_on_several_processes_and_from_these_to_one(tmp_path: Path, mesh: str) -> None:
    several = made(tmp_path, mesh)
    assert go(several, "whole") == SUCCESS
    assert go(several, "parts", steps=3) == SUCCESS
    third = tensors(tmp_path / "parts")
    assert go(several, "parts", resume=True) == SUCCESS
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    one = made(tmp_path)
    assert go(one, "one", steps=3) == SUCCESS
    torch.testing.assert_close(tensors(tmp_path / "one"), third, rtol=1e-4, atol=1e-5)
    assert losses(tmp_path / "one") == pytest.approx(losses(tmp_path / "whole")[:3], rel=1e-5)


def test_other_data_or_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    assert go(run, "a", steps=2) == SUCCESS
    seeded = run._replace(
        plan=structs.replace(run.plan, train=structs.replace(run.plan.train, seed=9))
    )
    assert go(seeded, "a", resume=True) == BAD_INPUT
    assert "E0714" in capsys.readouterr().err
    (tmp_path / "text.txt").write_bytes(text(5990))
    assert go(run, "a", resume=True) == BAD_INPUT
    told = capsys.readouterr().err
    assert "sha256 was" in told.replace("`", "") and "train_bytes" in told


def test_a_damaged_checkpoint_is_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    assert go(run, "whole") == SUCCESS
    assert go(run, "a", steps=4) == SUCCESS
    (newest,) = (tmp_path / "a" / "checkpoints").glob("step-00000004/rank-*")
    newest.write_bytes(newest.read_bytes()[:-8])
    assert go(run, "a", resume=True, quiet=False) == SUCCESS
    assert "resumed at step 2" in capsys.readouterr().err
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "a"))


def test_without_a_checkpoint_there_is_nothing_to_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert go(made(tmp_path), "a", resume=True) == BAD_INPUT
    assert "E0701" in capsys.readouterr().err
