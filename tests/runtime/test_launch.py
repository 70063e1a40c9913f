"""Where a run is started: what is refused before it begins, and how its processes end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec import structs

from fllmc.ir.plan import Plan
from fllmc.ir.types import Axis, Mesh
from fllmc.runtime import machine
from fllmc.runtime.launch import launch
from fllmc.runtime.machine import fitted
from fllmc.runtime.options import Options
from fllmc.runtime.statuses import ENVIRONMENT, STOPPED, SUCCESS, WORKER_FAILED
from tests.runtime.small_run import assert_same, go, made, options, step_of, tensors
from tests.runtime.test_resume import steps_done, wait_for

MESH = Mesh((Axis("data", 4), Axis("tensor", 2)))
CHILD = [sys.executable, "-m", "tests.runtime.small_run"]


def on_mesh(plan: Plan, mesh: Mesh) -> Plan:
    return structs.replace(plan, program=structs.replace(plan.program, mesh=mesh))


# Runs with the variables of a launcher, and tells whether torch was imported.
PROBE = """
import sys
from fllmc.driver import compile_spec
from fllmc.runtime.launch import launch
from fllmc.runtime.options import Options
compiled = compile_spec(sys.argv[1], "2x2")
status = launch(compiled.plan, compiled.source, Options(folder=sys.argv[2]))
print(status, "torch" in sys.modules)
"""


def test_the_wrong_number_of_processes_is_refused_without_torch(tmp_path: Path) -> None:
    made(tmp_path)
    ranks = {"RANK": "0", "WORLD_SIZE": "6", "LOCAL_RANK": "0"}
    command = [sys.executable, "-c", PROBE, str(tmp_path / "small.fllm"), str(tmp_path / "a")]
    done = subprocess.run(command, env={**os.environ, **ranks}, capture_output=True, text=True)
    assert done.stdout.split() == [str(ENVIRONMENT), "False"], done.stderr
    assert "error[E0801]: mesh data=2,tensor=2 needs 4 processes, found 6" in done.stderr
    assert "`--mesh data=3,tensor=2`" in done.stderr
    assert not (tmp_path / "a").exists()


def test_a_mesh_that_fits() -> None:
    assert fitted(MESH, 4, exact=True) == "data=2,tensor=2"
    assert fitted(MESH, 3, exact=True) == "data=3,tensor=1"
    assert fitted(MESH, 7, exact=False) == "data=2,tensor=2"
    assert fitted(MESH, 64, exact=False) == "data=4,tensor=2"
    assert fitted(MESH, 1, exact=False) == "data=1,tensor=1"


def test_a_mesh_larger_than_the_machine_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    large = on_mesh(run.plan, Mesh((Axis("data", 4096), Axis("tensor", 2))))
    assert launch(large, run.source, options(tmp_path, "a", device="cpu")) == ENVIRONMENT
    told = capsys.readouterr().err
    assert "error[E0802]: mesh data=4096,tensor=2 needs 8192 processes" in told
    assert ",tensor=2` runs on this machine" in told


def test_an_arena_larger_than_memory_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    large = structs.replace(run.plan, arena_bytes=1 << 50)
    assert launch(large, run.source, options(tmp_path, "a", device="cpu")) == ENVIRONMENT
    assert "error[E0803]: the plan needs 1.00 PiB" in capsys.readouterr().err


def test_gpus_that_are_not_there_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", lambda: 0)
    assert go(made(tmp_path), "a", device="cuda") == ENVIRONMENT
    assert "error[E0811]" in capsys.readouterr().err


def test_a_launchers_variable_must_be_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "many", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    assert go(made(tmp_path), "a") == ENVIRONMENT
    assert "E0810" in capsys.readouterr().err


def test_missing_packages_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    assert go(made(tmp_path), "a") == ENVIRONMENT
    told = capsys.readouterr().err
    assert "error[E0804]: running needs the package `torch`" in told and "fllmc[run]" in told


def test_missing_data_is_a_diagnostic(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path)
    (tmp_path / "text.txt").unlink()
    assert go(run, "a") == ENVIRONMENT
    assert "E0601" in capsys.readouterr().err


def test_a_new_run_never_writes_over_another(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, steps=1)
    assert go(run, "a") == SUCCESS
    assert go(run, "a") == ENVIRONMENT
    assert "E0805" in capsys.readouterr().err
    free = Options(runs=str(tmp_path / "runs"), name="small", base="/", quiet=True)
    assert launch(run.plan, run.source, free) == launch(run.plan, run.source, free) == SUCCESS
    first, second = sorted(path.name for path in (tmp_path / "runs").iterdir())
    assert first.startswith("small-") and second == f"{first}.2"


def test_a_folder_that_cannot_be_made_is_a_diagnostic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path)
    assert go(run, "text.txt/a") == ENVIRONMENT
    assert "error[E0806]" in capsys.readouterr().err


def test_the_artifact_is_kept_with_the_run(tmp_path: Path) -> None:
    run = made(tmp_path, steps=1)
    artifact = tmp_path / "x.fllmx"
    artifact.mkdir()
    (artifact / "report.html").write_text("report")
    assert launch(run.plan, run.source, options(tmp_path, "a"), artifact) == SUCCESS
    assert (tmp_path / "a" / "plan.fllmx" / "report.html").read_text() == "report"


SPOILT = """

_entries = entries


def entries(rt):
    made = dict(_entries(rt))
    whole = made["train"]

    def train():
        whole()
        if rt.coordinates["data"] == 1 and rt.runs["train"] == 2:
            {action}

    return {{**made, "train": train}}
"""


def test_the_first_rank_that_fails_is_told(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, "2x1")
    raising = SPOILT.format(action='raise ValueError("no such luck")')
    assert go(run._replace(source=run.source + raising), "a") == WORKER_FAILED
    told = capfd.readouterr().err
    assert told.startswith("error[E0808]: rank 1 failed: ValueError: no such luck\n"), told
    assert told.count("error") == 1 and "Traceback" not in told
    traceback = (tmp_path / "a" / "failures" / "rank-00001.txt").read_text()
    assert "no such luck" in traceback and "Traceback" in traceback


def test_a_rank_that_is_killed_is_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, "2x1")
    killed = SPOILT.format(action="__import__('os').kill(__import__('os').getpid(), 9)")
    assert go(run._replace(source=run.source + killed), "a") == WORKER_FAILED
    told = capfd.readouterr().err
    assert "error[E0809]: rank 1 ended with signal 9 (SIGKILL)" in told, told


def test_bad_data_on_two_processes_is_one_diagnostic(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path, "2x1")
    (tmp_path / "text.txt").write_bytes(b"short")
    assert go(run, "a") == 1
    told = capfd.readouterr().err
    assert told.count("error[") == 1 and "E0612" in told, told


def test_a_signal_to_the_launcher_saves_and_stops(tmp_path: Path) -> None:
    made(tmp_path, "2x1")
    child = subprocess.Popen([*CHILD, str(tmp_path), "2x1", "a", "100000"])
    wait_for(lambda: steps_done(tmp_path / "a") >= 3, child)
    child.terminate()
    assert child.wait(60) == STOPPED
    saved = step_of(tmp_path / "a")
    assert saved >= 3 and saved == steps_done(tmp_path / "a")


def test_under_torchrun_each_process_joins(tmp_path: Path) -> None:
    run = made(tmp_path, "2x1", steps=3)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    ranks = [*torchrun, "--nproc-per-node", "2", "-m", "tests.runtime.small_run"]
    done = subprocess.run([*ranks, str(tmp_path), "2x1", "joined", "3"], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert done.stdout.count(b"\n") >= 1
    assert go(run, "local") == SUCCESS
    assert_same(tensors(tmp_path / "joined"), tensors(tmp_path / "local"))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
