"""How long `fllmc compile` takes for the large Llamas, each time in a fresh process without torch.

    python bench/compile_time.py [--repeats 5] [--mesh 8x4]

Medians of the wall time, whether torch or jax was imported, and the ratio to the smallest model go
to `bench/results/compile_time.json`. The models take turns.
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


def compile_once(model: str, mesh: str) -> tuple[float, list[str]]:
    """Wall seconds of one fresh process, and which of torch and jax it imported."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", PROBE, "compile", model, "--mesh", mesh]
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, "--output", f"{folder}/{model}.fllmx"],
            capture_output=True,
            text=True,
            cwd=folder,
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
    seconds: dict[str, list[float]] = {model: [] for model in MODELS}
    heavy: set[str] = set()
    for _ in range(args.repeats):
        for model in MODELS:
            spent, imported = compile_once(model, args.mesh)
            seconds[model].append(spent)
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
        "ratio": {model: value / smallest for model, value in medians.items()},
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(told, indent=2) + "\n")
    for model, value in medians.items():
        print(f"{model:12} {value:6.2f} s  {value / smallest:5.2f}x")


if __name__ == "__main__":
    main()
