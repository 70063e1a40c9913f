"""Runs compiled plans on one or several processes and gives what they computed, whole.

A group of processes is started once and takes all cases in order: each compiles its share, then each
case runs on as many of them as its mesh has devices. Arrays travel as .npz files.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import torch
from torch import Tensor

from fllmc.ir.plan import Plan, Stored
from fllmc.ir.types import Mesh, Sizes
from tests.oracle.reference import Batch

PATIENCE = 120.0
"""Seconds to wait for the other processes."""


class Case(NamedTuple):
    """A spec on a mesh."""

    name: str
    text: str
    mesh: str


class Outcome(NamedTuple):
    """What a run of a case left: everything whole, put together from the ranks' parts."""

    losses: list[float]
    grad_norms: list[float]
    first_states: dict[str, Tensor]
    """States after the first step, as `NAME#m`."""
    stored: dict[str, Tensor]
    """Parameters and states after the last step."""
    counted: dict[int, tuple[int, int]]
    """Calls and bytes of each collective site on rank 0."""
    arena_bytes: int
    plan: Plan


def run_cases(
    cases: Sequence[Case],
    params: Mapping[str, Tensor],
    batches: Sequence[Batch],
    processes: int = 4,
) -> dict[str, Outcome]:
    """Train each case on the batches, beginning with these parameters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(folder / "params.npz", **{k: v.numpy() for k, v in params.items()})
        for number, batch in enumerate(batches):
            np.savez(
                folder / f"batch{number}.npz", **{k: v.numpy() for k, v in batch._asdict().items()}
            )
        (folder / "cases.json").write_bytes(msgspec.json.encode(cases))
        torch.multiprocessing.spawn(_process, (name, processes), nprocs=processes)
        return {case.name: _outcome(folder, number) for number, case in enumerate(cases)}


def _process(index: int, name: str, processes: int) -> None:
    """One process of the group: compile a share of the cases, then take part in each."""
    torch.set_num_threads(1)
    folder = Path(name)
    cases = msgspec.json.decode((folder / "cases.json").read_bytes(), type=list[Case])
    for number in range(index, len(cases), processes):
        _compile(folder, number, cases[number])
    turn = 0
    for number in range(len(cases)):
        _wait_for(folder / f"plan{number}.json")
        plan = msgspec.json.decode((folder / f"plan{number}.json").read_bytes(), type=Plan)
        # Small meshes take turns on the processes, so that none is idle.
        rank = (index - turn) % processes
        turn += plan.program.mesh.size
        if rank < plan.program.mesh.size:
            _run(folder, number, plan, rank)


def _compile(folder: Path, number: int, case: Case) -> None:
    from fllmc.driver import compile_text

    compiled = compile_text(case.text, mesh=case.mesh)
    (folder / f"source{number}.py").write_text(compiled.source)
    (folder / "plan.part").with_suffix(f".{number}").write_bytes(msgspec.json.encode(compiled.plan))
    os.replace(folder / f"plan.{number}", folder / f"plan{number}.json")


def _wait_for(path: Path) -> None:
    begin = time.monotonic()
    while not path.exists():
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError(path.name)
        time.sleep(0.01)


def _run(folder: Path, number: int, plan: Plan, rank: int) -> None:
    """One rank of one case, alone or in a process group of its own."""
    import torch.distributed as dist

    from fllmc.runtime.communicator import Communicator

    mesh = plan.program.mesh
    if mesh.size == 1:
        _train(folder, number, plan, rank, None)
        return
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet{number}",
        rank=rank,
        world_size=mesh.size,
        timeout=timedelta(seconds=PATIENCE),
    )
    axes = tuple(collective.axes for collective in plan.collectives)
    _train(folder, number, plan, rank, Communicator(mesh, rank, axes))
    dist.barrier()
    dist.destroy_process_group()


def _train(folder: Path, number: int, plan: Plan, rank: int, comm: Any) -> None:
    from fllmc.runtime.executor import Executor

    executor = Executor(plan, (folder / f"source{number}.py").read_text(), rank, comm)
    sizes = plan.program.sizes
    stored = {entry.name: entry for entry in plan.stored}

    def give(name: str, whole: np.ndarray) -> None:
        place = executor.tensor(name)
        value = torch.from_numpy(whole).reshape(sizes.shape(stored[name].type))
        place.copy_(value[region(stored[name], sizes, rank)])

    def take(name: str) -> np.ndarray:
        return executor.tensor(name).numpy().copy()

    lasting = [entry.name for entry in plan.stored if entry.role in ("param", "state")]
    for name, value in np.load(folder / "params.npz").items():
        give(name, value)
    told: dict[str, Any] = {"losses": [], "grad_norms": []}
    for step, path in enumerate(sorted(folder.glob("batch*.npz")), 1):
        for name, value in np.load(path).items():
            give(name, value)
        executor.run("train", step=step)
        told["losses"].append(take("loss").item())
        told["grad_norms"].append(take("grad_norm").item())
        if step == 1:
            told |= {f"first/{name}": take(name) for name in lasting if "#" in name}
    told |= {f"stored/{name}": take(name) for name in lasting}
    told["counted"] = [[site, *found] for site, found in sorted(executor.counted.items())]
    told["arena"] = executor.arena.numel() * executor.arena.element_size()
    np.savez(folder / f"told{number}.{rank}.npz", **told)


def region(entry: Stored, sizes: Sizes, rank: int) -> tuple[slice, ...]:
    """The part of the whole tensor that a rank holds."""
    mesh: Mesh = sizes.mesh
    place = mesh.coordinates(rank)
    found: list[slice] = []
    for dim, extent in zip(entry.type.dims, sizes.local_shape(entry.type), strict=True):
        start = mesh.position(place, dim.axes) * extent
        found.append(slice(start, start + extent))
    return tuple(found)


def _outcome(folder: Path, number: int) -> Outcome:
    plan = msgspec.json.decode((folder / f"plan{number}.json").read_bytes(), type=Plan)
    ranks = range(plan.program.mesh.size)
    told = [dict(np.load(folder / f"told{number}.{rank}.npz")) for rank in ranks]
    for other in told[1:]:
        assert (other["losses"] == told[0]["losses"]).all(), "ranks differ in the loss"
    whole = {key: _whole(plan, key, told) for key in told[0] if "/" in key}
    return Outcome(
        losses=told[0]["losses"].tolist(),
        grad_norms=told[0]["grad_norms"].tolist(),
        first_states=_under(whole, "first/"),
        stored=_under(whole, "stored/"),
        counted={site: (calls, size) for site, calls, size in told[0]["counted"]},
        arena_bytes=int(told[0]["arena"]),
        plan=plan,
    )


def _under(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _whole(plan: Plan, key: str, told: Sequence[Mapping[str, np.ndarray]]) -> Tensor:
    """The ranks' parts put together; parts that several ranks hold must be equal."""
    entry = next(s for s in plan.stored if s.name == key.split("/", 1)[1])
    sizes = plan.program.sizes
    whole = torch.full(sizes.shape(entry.type), torch.nan, dtype=torch.float64)
    for rank, parts in enumerate(told):
        place = whole[region(entry, sizes, rank)]
        part = torch.from_numpy(parts[key]).double()
        assert place.isnan().all() or torch.equal(place, part), f"ranks differ in {key}"
        place.copy_(part)
    assert not whole.isnan().any(), f"{key} is not whole"
    return whole
