"""The commands one waits for start light: without torch or jax, and with few modules.

Seconds are measured by bench/compile_time.py, not asserted here.
"""

import json
import subprocess
import sys

import pytest

from tests.house.tree import ROOT

HEAVY = (
    "torch",
    "triton",
    "jax",
    "numpy",
    "networkx",
    "jinja2",
    "lark",
    "rich",
    "ortools",
    "scipy",
    "transformers",
    "safetensors",
    "tokenizers",
)
MODULES = 300
"""Imported modules of a command that answers in 0.2 s; each costs about half a millisecond."""

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
    assert len(told["modules"]) < MODULES


def test_models_ship() -> None:
    assert len(commands()) > 1
