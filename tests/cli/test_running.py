"""`run`, `resume`, `quickstart` and `doctor`, on models that take no time."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from fllmc.cli import exits
from tests.cli.running import document, run

TINY = {
    "dims.layers": 2,
    "dims.embed": 32,
    "dims.ffn": 48,
    "data.batch": 4,
    "data.seq": 16,
    "train.steps": 6,
    "train.evaluate_every": 0,
    "train.checkpoint_every": 2,
    "data.holdout": 0.01,
}
SETS = [part for key, value in TINY.items() for part in ("--set", f"{key}={value}")]


def fllmc(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in a folder."""
    command = [sys.executable, "-m", "fllmc", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def losses(folder: Path) -> list[float]:
    """The losses that a run wrote down."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [record["loss"] for line in lines if "loss" in (record := json.loads(line))]


def test_a_resumed_run_has_the_losses_of_one_in_one_go(tmp_path: Path) -> None:
    whole = fllmc(tmp_path, "run", "quickstart", *SETS, "-o", "whole", "-q")
    assert whole.returncode == 0, whole.stderr
    part = fllmc(tmp_path, "run", "quickstart", *SETS, "-o", "part", "--steps", "4", "-q")
    assert part.returncode == 0, part.stderr
    rest = fllmc(tmp_path, "resume", "part", "-q")
    assert rest.returncode == 0, rest.stderr
    assert losses(tmp_path / "part") == losses(tmp_path / "whole")
    assert len(losses(tmp_path / "whole")) == TINY["train.steps"]


def test_a_run_goes_on_on_another_mesh(tmp_path: Path) -> None:
    fllmc(tmp_path, "run", "quickstart", *SETS, "-o", "here", "--steps", "4", "-q")
    done = fllmc(tmp_path, "resume", "here", "--mesh", "2x1", "-q")
    assert done.returncode == 0, done.stderr
    assert "mesh 2x1 read as data=2,tensor=1" in done.stderr
    assert len(losses(tmp_path / "here")) == TINY["train.steps"]


def test_a_run_is_resumed_elsewhere_only_from_the_same_spec(tmp_path: Path) -> None:
    spec = tmp_path / "mine.fllm"
    imported = 'fllm 1\n\nimport "models/quickstart.fllm" (quickstart)\n'
    rest = (
        '\ndata text {\n  source: "builtin:pydocs"\n  batch: 4\n  seq: 16\n}\n'
        "\ntrain learn: quickstart {\n  data: text\n  loss: cross_entropy()\n  optimizer: adamw()\n"
        "  rate: constant(peak: 1e-3)\n  steps: 2\n}\n"
    )
    spec.write_text(imported + rest)
    small = ("--set", "dims.layers=1", "--set", "dims.embed=32")
    first = fllmc(tmp_path, "run", "mine.fllm", *small, "-o", "run", "--steps", "1", "-q")
    assert first.returncode == 0, first.stderr
    spec.write_text(imported + rest.replace("1e-3", "1e-2"))
    done = fllmc(tmp_path, "resume", "run", "--mesh", "2x1", "-q")
    assert done.returncode == 1
    assert "error[E0730]: `mine.fllm` is not as it was when the run began" in done.stderr


def test_quickstart_plans_the_run_and_tells_what_to_do_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for the training itself, which is `test_quickstart_ends_with_what_to_do_next`'s."""
    started: list[object] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fllmc.runtime.launch.launch", lambda *given: started.append(given) or 0)
    done = run("quickstart", "--steps", "2")
    assert done.exit_code == 0, done.stderr
    assert len(started) == 1
    assert "fllmc compile llama3_8b" in done.stderr.splitlines()[-1]


@pytest.mark.long
def test_quickstart_ends_with_what_to_do_next(tmp_path: Path) -> None:
    done = fllmc(tmp_path, "quickstart", "--steps", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("The ")
    assert "letter pairs" in done.stderr
    (folder,) = (tmp_path / "runs").iterdir()
    assert f"runs/{folder.name}/plan.fllmx/report.html" in done.stderr
    assert (folder / "plan.fllmx" / "report.html").is_file()
    assert "fllmc compile llama3_8b" in done.stderr.splitlines()[-1]


def test_a_mesh_larger_than_this_machine_is_a_diagnostic(tmp_path: Path) -> None:
    sets = ("--set", "data.batch=1024", "--set", "data.seq=16")
    done = fllmc(tmp_path, "run", "quickstart", *sets, "--mesh", "1024x1")
    assert done.returncode == exits.ENVIRONMENT
    assert "error[E0802]" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_run_is_a_diagnostic(tmp_path: Path) -> None:
    done = run("resume", str(tmp_path))
    assert done.exit_code == 1
    assert "error[E0731]" in done.stderr


def test_doctor_says_what_is_installed() -> None:
    told = document("doctor", "--json")
    assert told["packages"]["msgspec"]
    assert told["cores"] >= 1
    assert "this machine can: check, format, compile" in run("doctor").stdout
