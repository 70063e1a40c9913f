"""A training step with and without transfers beside computation, on gloo, in one run.

    python bench/overlap.py [--ranks 2] [--rounds 15] [--layers 6] [--embed 256]

A Llama under ZeRO-3 is compiled twice, with `overlap: on` and `overlap: off`. The same processes
take turns with both; the median of each, their ratio, and what the compiler reckons to be exposed
go to `bench/results/overlap.json`. Ranks share this machine's processor, so a transfer beside
computation takes its cores: the ratio says what overlap costs there, not what a network hides.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import spawn

from fllmc.driver import Compiled, compile_spec
from fllmc.frontend.targets import load_target
from fllmc.passes.exposure import exposure
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import initialise
from fllmc.runtime.parts import lasting_parts
from fllmc.runtime.ranks import communicator

RESULTS = Path(__file__).resolve().parent / "results" / "overlap.json"
SPEC = """\
fllm 1

import "models/llama3_8b.fllm" (llama3_8b)

dims {{
  vocab = 256
  embed = {embed}
  heads = 4
  kv_heads = 4
  ffn = {ffn}
  layers = {layers}
}}

data text {{
  source: "builtin:pydocs"
  batch: {batch}
  seq: 128
}}

train run: llama3_8b {{
  data: text
  loss: cross_entropy()
  optimizer: adamw(betas: (0.9, 0.95), eps: 1e-8, weight_decay: 0.1)
  rate: constant(peak: 1e-3)
  steps: 1_000
  precision: policy(params: f32, compute: f32, reduce: f32)
}}

schedule placed for run {{
  shard batch over fsdp
  zero 3 over fsdp
  overlap: {overlap}
}}
"""


def compiled(folder: Path, given: argparse.Namespace, overlap: str) -> Compiled:
    """The plan with or without overlap."""
    path = folder / f"{overlap}.fllm"
    sizes = {"embed": given.embed, "ffn": 4 * given.embed, "layers": given.layers}
    path.write_text(SPEC.format(**sizes, batch=2 * given.ranks, overlap=overlap))
    return compile_spec(str(path), mesh=f"fsdp={given.ranks}")


def work(rank: int, name: str, given: argparse.Namespace) -> None:
    """One rank: both plans in turn; the first one writes the times."""
    torch.set_num_threads(1)
    folder = Path(name)
    mine = folder / str(rank)
    mine.mkdir()
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=given.ranks
    )
    times: dict[str, list[float]] = {"on": [], "off": []}
    plans = {way: compiled(mine, given, way) for way in times}
    steps: dict[str, Executor] = {}
    for way, made in plans.items():
        comm = communicator(made.plan, rank)
        steps[way] = Executor(made.plan, made.source, rank, comm)
        initialise(made.plan, steps[way], lasting_parts(made.plan, rank))
        steps[way].tensor("weights").fill_(1.0)
    for turn in range(given.rounds + 1):
        for way in sorted(times, reverse=turn % 2 == 0):
            dist.barrier()
            begin = time.perf_counter()
            steps[way].run("train", step=turn + 1)
            dist.barrier()
            times[way].append(time.perf_counter() - begin)
    losses = {way: step.tensor("loss").item() for way, step in steps.items()}
    assert losses["on"] == losses["off"], losses
    if rank == 0:
        (folder / "times.json").write_text(json.dumps(result(given, plans, times)))
    dist.destroy_process_group()


def result(
    given: argparse.Namespace, plans: dict[str, Compiled], times: dict[str, list[float]]
) -> dict[str, object]:
    """What is written: medians of all steps but the first, and what was reckoned."""
    target = load_target("cpu")
    median = {way: statistics.median(found[1:]) for way, found in times.items()}
    found = {way: exposure(made.plan.program, "train", target) for way, made in plans.items()}
    return {
        "ranks": given.ranks,
        "embed": given.embed,
        "layers": given.layers,
        "cores": len(os.sched_getaffinity(0)),
        "torch": torch.__version__,
        "step_seconds": median,
        "on_over_off": median["on"] / median["off"],
        "arena_bytes": {way: made.plan.arena_bytes for way, made in plans.items()},
        "reckoned_exposed_seconds": {way: each.exposed for way, each in found.items()},
        "reckoned_moved_seconds": found["off"].moved,
    }


def main() -> None:
    """Run both and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    for name, value in (("ranks", 2), ("rounds", 15), ("layers", 6), ("embed", 256)):
        parser.add_argument(f"--{name}", type=int, default=value)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        spawn(work, (name, given), nprocs=given.ranks)
        found = json.loads((Path(name) / "times.json").read_text())
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
