"""The compiled training step against plain PyTorch on this machine's processor, in one run.

    python bench/step_cpu.py [--sizes small,medium,large,words] [--steps 5] [--rounds 7] [--quick]

A Llama of each size is trained with the same weights on the same batches by the compiled plan, by
PyTorch as one would write it (fused attention, AdamW and norms), and by `torch.compile` of that.
Each contestant has a process of its own; they take turns in rotating order, one at a time, and
medians are compared. Losses must agree. Memory is the growth of the resident set's high-water mark
from before the model is built, when libraries are loaded and the thread pool is up. The result and
a profile by kind of op go to `bench/results/step_cpu.json`.
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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "step_cpu.json"

Size = dict[str, int]
SIZES: Mapping[str, Size] = {
    "small": {"vocab": 256, "embed": 128, "heads": 4, "layers": 4, "batch": 16, "seq": 128},
    "medium": {"vocab": 256, "embed": 256, "heads": 4, "layers": 6, "batch": 16, "seq": 128},
    "large": {"vocab": 256, "embed": 512, "heads": 8, "layers": 8, "batch": 8, "seq": 256},
    "words": {"vocab": 4096, "embed": 256, "heads": 4, "layers": 6, "batch": 16, "seq": 128},
}
CONTESTANTS = ("fllmc", "eager", "compile")
PARITY = 2e-4
"""The largest relative difference between two contestants' losses at any step."""

SPEC = """\
fllm 1

import "models/llama3_8b.fllm" (llama3_8b)

dims {{
  vocab = {vocab}
  embed = {embed}
  heads = {heads}
  kv_heads = {kv_heads}
  ffn = {ffn}
  layers = {layers}
}}

data text {{
  source: "builtin:pydocs"
  batch: {batch}
  seq: {seq}
}}

train run: llama3_8b {{
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1)
  no_decay: [*.scale]
  rate: constant(peak: 1e-3)
  clip: 1.0
  steps: 1_000
  precision: policy(params: f32, compute: f32, reduce: f32)
}}
"""

GROUPS = (
    ("matrix products", ("mm", "linear", "matmul", "gemm")),
    ("attention", ("scaled_dot_product", "flash_attention")),
    ("optimizer", ("adam", "foreach")),
    ("softmax and loss", ("softmax", "nll", "cross_entropy", "logsumexp", "gather", "scatter")),
    ("embedding", ("embedding", "index")),
    ("copies", ("copy", "fill", "zero", "cat", "clone", "contiguous", "empty")),
    ("generated kernels", ("cpp_fused", "graph", "compiled", "torchdynamo", "inductor")),
    ("outside ops", ("(python)",)),
)


def whole(size: Size) -> Size:
    """The size with what follows from the rest."""
    ffn = (size["embed"] * 8 // 3 + 63) // 64 * 64
    return {**size, "kv_heads": size["heads"] // 2, "ffn": ffn}


class Contestant:
    """A child process that answers lines."""

    def __init__(self, kind: str, size: Size, threads: int, extra: str) -> None:
        command = [sys.executable, str(HERE / "step_child.py"), kind, json.dumps(size)]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        self.kind = kind
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self.cpu_seconds: list[float] = []
        self.arena_bytes = 0
        self.process = subprocess.Popen(
            [*command, str(threads), extra],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.arena_bytes = self.answer()["arena_bytes"]

    def answer(self) -> Any:
        """The next line that it tells."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.kind} ended early with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, question: str) -> Any:
        """Send a line and wait for the answer."""
        assert self.process.stdin
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return self.answer()

    def steps(self, count: int, keep: bool = True) -> None:
        """Take training steps; `keep` their times."""
        told = self.ask(f"steps {count}")
        self.losses += told["losses"]
        if keep:
            self.seconds += told["seconds"]
            self.cpu_seconds += told["cpu_seconds"]

    def close(self) -> None:
        """End of its input, which ends it."""
        self.process.communicate()


def compile_plan(size: Size, folder: Path) -> dict[str, Any]:
    """Write the artifact for a size; gives its arena and the wall time."""
    spec = folder / "bench.fllm"
    spec.write_text(SPEC.format(**size))
    begin = time.perf_counter()
    command = [sys.executable, "-m", "fllmc", "compile", str(spec), "--mesh", "1"]
    subprocess.run(
        [*command, "--output", str(folder / "bench.fllmx")],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    return {"compile_seconds": time.perf_counter() - begin}


def choose_adamw(size: Size, threads: int) -> tuple[str, dict[str, float]]:
    """The faster of PyTorch's two implementations for this size."""
    found: dict[str, float] = {}
    for kind in ("foreach", "fused"):
        child = Contestant("eager", size, threads, kind)
        child.steps(1, keep=False)
        child.steps(3)
        found[kind] = min(child.seconds)
        child.close()
    return min(found, key=lambda kind: found[kind]), found


def contest(size: Size, args: argparse.Namespace) -> dict[str, Any]:
    """Everything about one size."""
    with tempfile.TemporaryDirectory() as folder:
        told = compile_plan(size, Path(folder))
        adamw, tried = choose_adamw(size, args.threads)
        extra = {"fllmc": str(Path(folder) / "bench.fllmx")}
        children = [Contestant(k, size, args.threads, extra.get(k, adamw)) for k in CONTESTANTS]
        for child in children:
            child.steps(2, keep=False)
        first = {child.kind: child.ask("memory") for child in children}
        for turn in range(args.rounds):
            order = children[turn % 3 :] + children[: turn % 3]
            for child in order if turn % 2 else reversed(order):
                child.steps(args.steps)
        later = {child.kind: child.ask("memory") for child in children}
        profiles = {child.kind: child.ask("profile 3") for child in children}
        for child in children:
            child.close()
    return {
        "size": size,
        **told,
        "adamw": {"chosen": adamw, "seconds": tried},
        "parity": parity(children),
        "contestants": {
            child.kind: summary(child, size, first, later, profiles) for child in children
        },
    }


def parity(children: list[Contestant]) -> dict[str, float]:
    """The largest relative difference of each one's losses from eager's; too much ends the run."""
    expected = next(child.losses for child in children if child.kind == "eager")
    found = {
        child.kind: max(
            abs(ours - theirs) / abs(theirs)
            for ours, theirs in zip(child.losses, expected, strict=True)
        )
        for child in children
    }
    if max(found.values()) > PARITY:
        raise SystemExit(f"losses differ: {found}, allowed {PARITY}")
    return found


def summary(
    child: Contestant,
    size: Size,
    first: Mapping[str, dict[str, int]],
    later: Mapping[str, dict[str, int]],
    profiles: Mapping[str, dict[str, float]],
) -> dict[str, Any]:
    """One contestant's figures."""
    median = statistics.median(child.seconds)
    quarter, _, three = statistics.quantiles(child.seconds, n=4)
    return {
        "step_seconds": median,
        "quartiles": [quarter, three],
        "tokens_per_second": size["batch"] * size["seq"] / median,
        "cpu_seconds": statistics.median(child.cpu_seconds),
        "arena_bytes": child.arena_bytes,
        "peak_bytes": max(first[child.kind]["growth"], later[child.kind]["growth"]),
        "peak_bytes_after_warm_up": later[child.kind]["growth"],
        "first_loss": child.losses[0],
        "last_loss": child.losses[-1],
        "profile_ms": by_kind(profiles[child.kind]),
        "top_ops_ms": dict(sorted(profiles[child.kind].items(), key=lambda kv: -kv[1])[:12]),
    }


def by_kind(profile: Mapping[str, float]) -> dict[str, float]:
    """Milliseconds per step by group of ops; the rest are elementwise ops and reductions."""
    totals: dict[str, float] = {}
    for name, spent in profile.items():
        matches = (group for group, words in GROUPS if any(w in name.lower() for w in words))
        group = next(matches, "elementwise and reductions")
        totals[group] = totals.get(group, 0.0) + spent
    return dict(sorted(totals.items(), key=lambda kv: -kv[1]))


def ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """Ours over theirs: speed over the better one's, memory over eager's."""
    speed = {k: v["tokens_per_second"] for k, v in result["contestants"].items()}
    memory = {k: v["peak_bytes"] for k, v in result["contestants"].items()}
    return {
        "speed_over_eager": speed["fllmc"] / speed["eager"],
        "speed_over_compile": speed["fllmc"] / speed["compile"],
        "speed_over_better": speed["fllmc"] / max(speed["eager"], speed["compile"]),
        "memory_over_eager": memory["fllmc"] / memory["eager"],
        "memory_over_compile": memory["fllmc"] / memory["compile"],
    }


def machine() -> dict[str, str | int | None]:
    """Where this was measured."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "")
    code = "import torch; print(torch.__version__)"
    version = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": version.stdout.strip(),
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", default=",".join(SIZES))
    parser.add_argument("--steps", type=int, default=5, help="steps per turn")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each contestant")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="small only, 3 rounds of 3 steps")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.steps, args.rounds = "small", 3, 3
    return args


def main() -> None:
    """Measure each size, print a line for each, write the result."""
    args = arguments()
    results: dict[str, Any] = {}
    told: dict[str, Any] = {
        "machine": machine(),
        "load_before": os.getloadavg(),
        "threads": args.threads,
        "rounds": args.rounds,
        "steps_per_round": args.steps,
        "sizes": results,
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for name in args.sizes.split(","):
        result = contest(whole(SIZES[name]), args)
        result["ratios"] = ratios(result)
        results[name] = result
        print(name, json.dumps({k: round(v, 3) for k, v in result["ratios"].items()}), flush=True)
        told["load_after"] = os.getloadavg()
        args.output.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
