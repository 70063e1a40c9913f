"""How long `fllmc compile` takes for the large Llamas, each time in a fresh process without torch.

    python bench/compile_time.py [--repeats 5] [--mesh 8x4]

Medians of the wall time, whether torch or jax was imported, and the ratio to the smallest model go
to `bench/results/compile_time.json`, and so do `--help` and `check`, which are to answer in 0.2 s.
All take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RESULTS = Path(__file__).resolve().parent / "results" / "compile_time.json"
MODELS = ("llama3_8b", "llama3_70b", "llama3_405b")
STARTS = {"--help": ("--help",), "check": ("check", "llama3_8b")}

# What the console script does, then what it imported.
PROBE = """
import sys
from fllmc.cli import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code
print(*(name for name in ("torch", "jax") if name in sys.modules), file=sys.stderr)
sys.exit(status)
"""


def run_once(*arguments: str) -> tuple[float, list[str]]:
    """Wall seconds of one fresh process, and which of torch and jax it imported."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=folder
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    return seconds, done.stderr.splitlines()[-1].split()


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--mesh", default="8x4")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    compiles = {model: ("compile", model, "--mesh", args.mesh) for model in MODELS}
    commands = {**STARTS, **compiles}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    heavy: set[str] = set()
    for _ in range(args.repeats):
        for name, command in commands.items():
            spent, imported = run_once(*command)
            seconds[name].append(spent)
            heavy.update(imported)
    medians = {model: statistics.median(found) for model, found in seconds.items()}
    smallest = medians[MODELS[0]]
    told = {
        "mesh": args.mesh,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "imported": sorted(heavy),
        "seconds": seconds,
        "median_seconds": medians,
        "ratio": {model: medians[model] / smallest for model in MODELS},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(told, indent=2) + "\n")
    for name, value in medians.items():
        ratio = f"  {value / smallest:5.2f}x" if name in MODELS else ""
        print(f"{name:12} {value:6.2f} s{ratio}")


if __name__ == "__main__":
    main()
