"""The commands one waits for start at once, and without torch or jax."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.house.tree import ROOT

HEAVY = ("torch", "triton", "jax", "scipy", "transformers", "safetensors", "tokenizers")
CPU_SECONDS = 0.2

# Runs the command as the console script does, then tells the exit status and what it imported.
PROBE = """
import json, sys
from fllmc.cli import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print(json.dumps({"status": status or 0, "modules": sorted(sys.modules)}), file=sys.stderr)
"""


def commands() -> list[list[str]]:
    """`--help`, and `check` for every model that ships."""
    models = sorted((ROOT / "specs" / "models").glob("*.fllm"))
    return [["--help"], *(["check", p.relative_to(ROOT).as_posix()] for p in models)]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_starts_light(arguments: list[str]) -> None:
    command = [sys.executable, "-c", PROBE, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    told = json.loads(done.stderr.splitlines()[-1])
    assert told["status"] == 0, done.stderr
    assert [name for name in HEAVY if name in told["modules"]] == []


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_starts_fast(arguments: list[str]) -> None:
    """Processor time, the best of seven: a busy machine does not change it much."""
    script = Path(sys.executable).parent / "fllmc"
    assert min(_cpu_seconds([str(script), *arguments]) for _ in range(7)) < CPU_SECONDS


def test_models_ship() -> None:
    assert len(commands()) > 1


def _cpu_seconds(command: list[str]) -> float:
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0, command
    return used.ru_utime + used.ru_stime
