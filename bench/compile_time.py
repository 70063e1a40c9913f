"""How long `fllmc compile` takes for the large Llamas, each time in a fresh process without torch.

    python bench/compile_time.py [--repeats 5]

Medians of the wall time, the most memory, and whether torch or jax was imported go to
`bench/results/compile_time.json`, and so do `--help` and `check`, which are to answer in 0.2 s. The
405B in sixteen pipeline stages is compiled for 32 and for 16,384 devices; their ratio says how
compiling grows with the mesh. All take turns.
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
from typing import NamedTuple

RESULTS = Path(__file__).resolve().parent / "results" / "compile_time.json"
COMMANDS = {
    "--help": ("--help",),
    "check": ("check", "llama3_8b"),
    "8B at 8x4": ("compile", "llama3_8b", "--mesh", "8x4"),
    "70B at 32x8": ("compile", "llama3_70b", "--mesh", "32x8"),
    "405B on 32": ("compile", "llama3_405b_pipeline", "--mesh", "pipe=16,data=1,tensor=2"),
    "405B on 16,384": ("compile", "llama3_405b_pipeline", "--mesh", "pipe=16,data=128,tensor=8"),
}
GROWTH = ("405B on 32", "405B on 16,384")

# What the console script does, then what it imported.
PROBE = """
import sys
from fllmc.cli import main
try:
    status = main()
except SystemExit as stop:
    status = stop.code
import resource
most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(most, *(name for name in ("torch", "jax") if name in sys.modules), file=sys.stderr)
sys.exit(status)
"""


class Told(NamedTuple):
    """Wall seconds of a fresh process, its most resident MiB, and which of torch and jax it had."""

    seconds: float
    mebibytes: float
    imported: list[str]


def run_once(*arguments: str) -> Told:
    """One run of the command line in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", PROBE, *arguments], capture_output=True, text=True, cwd=folder
        )
        seconds = time.perf_counter() - begin
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
    most, *imported = done.stderr.splitlines()[-1].split()
    return Told(seconds, int(most) / 1024, imported)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    told: dict[str, list[Told]] = {name: [] for name in COMMANDS}
    for _ in range(args.repeats):
        for name, command in COMMANDS.items():
            told[name].append(run_once(*command))
    medians = {name: statistics.median(t.seconds for t in runs) for name, runs in told.items()}
    most = {name: max(t.mebibytes for t in runs) for name, runs in told.items()}
    result = {
        "cores": os.cpu_count(),
        "load_after": os.getloadavg(),
        "python": platform.python_version(),
        "imported": sorted({name for runs in told.values() for t in runs for name in t.imported}),
        "seconds": {name: [t.seconds for t in runs] for name, runs in told.items()},
        "median_seconds": medians,
        "most_mebibytes": most,
        "growth": medians[GROWTH[1]] / medians[GROWTH[0]],
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=2) + "\n")
    for name, value in medians.items():
        print(f"{name:16} {value:6.2f} s  {most[name]:6.0f} MiB")
    print(f"from 32 to 16,384 devices: {result['growth']:.2f}x")


if __name__ == "__main__":
    main()
