"""Runs compiled plans on one or several processes and gives what they computed, whole.

A group of processes is started once and takes all cases in order: each compiles its share, then
each case runs on as many of them as its mesh has devices. Everything travels as files of a folder.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from fllmc.driver import compile_spec
from fllmc.ir.plan import Plan, Stored
from fllmc.ir.types import Sizes
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.executor import Executor
from tests.oracle.reference import Batch

PATIENCE = 120.0
"""Seconds to wait for the other processes."""


class Case(NamedTuple):
    """A spec on a mesh."""

    name: str
    text: str
    mesh: str


class Told(NamedTuple):
    """What a rank says of its run. `counted`: calls and bytes of each collective site."""

    losses: list[float]
    grad_norms: list[float]
    counted: dict[int, tuple[int, int]]
    arena_bytes: int


class Outcome(NamedTuple):
    """What a run of a case left: states after the first step, parameters and states after the last.

    Tensors are whole, put together from the ranks' parts, in fp64; `NAME#m` is a state of `NAME`.
    """

    plan: Plan
    told: Told
    first: dict[str, Tensor]
    last: dict[str, Tensor]


def run_cases(
    cases: Sequence[Case],
    params: Mapping[str, Tensor],
    batches: Sequence[Batch],
    processes: int = 4,
) -> dict[str, Outcome]:
    """Train each case on the batches, beginning with these parameters."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_file(dict(params), folder / "params.safetensors")
        for number, batch in enumerate(batches):
            save_file(batch._asdict(), folder / f"batch{number}.safetensors")
        (folder / "cases.json").write_bytes(msgspec.json.encode(cases))
        spawn(_process, (name, processes), nprocs=processes)
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
    spec = folder / f"spec{number}.fllm"
    spec.write_text(case.text)
    compiled = compile_spec(str(spec), mesh=case.mesh)
    (folder / f"source{number}.py").write_text(compiled.source)
    part = folder / f"plan{number}.part"
    part.write_bytes(msgspec.json.encode(compiled.plan))
    part.rename(part.with_suffix(".json"))


def _wait_for(path: Path) -> None:
    begin = time.monotonic()
    while not path.exists():
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError(path.name)
        time.sleep(0.01)


def _run(folder: Path, number: int, plan: Plan, rank: int) -> None:
    """One rank of one case, alone or in a process group of its own."""
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


def _train(folder: Path, number: int, plan: Plan, rank: int, comm: Communicator | None) -> None:
    """One rank's run, and what it saw."""
    executor = Executor(plan, (folder / f"source{number}.py").read_text(), rank, comm)
    entries = {entry.name: entry for entry in plan.stored}
    lasting = [name for name, entry in entries.items() if entry.role in ("param", "state")]

    def give(given: Mapping[str, Tensor]) -> None:
        for name, value in given.items():
            whole = value.reshape(plan.program.sizes.shape(entries[name].type))
            executor.tensor(name).copy_(whole[region(entries[name], plan.program.sizes, rank)])

    give(load_file(folder / "params.safetensors"))
    told = Told([], [], {}, executor.arena.numel() * executor.arena.element_size())
    tensors: dict[str, Tensor] = {}
    for step, path in enumerate(sorted(folder.glob("batch*.safetensors")), 1):
        give(load_file(path))
        executor.run("train", step=step)
        told.losses.append(executor.tensor("loss").item())
        told.grad_norms.append(executor.tensor("grad_norm").item())
        if step == 1:
            tensors |= {f"first/{n}": executor.tensor(n).clone() for n in lasting if "#" in n}
    told.counted.update(executor.counted)
    tensors |= {f"last/{name}": executor.tensor(name).clone() for name in lasting}
    save_file(tensors, folder / f"told{number}.{rank}.safetensors")
    (folder / f"told{number}.{rank}.json").write_bytes(msgspec.json.encode(told))


def region(entry: Stored, sizes: Sizes, rank: int) -> tuple[slice, ...]:
    """The part of the whole tensor that a rank holds."""
    mesh = sizes.mesh
    place = mesh.coordinates(rank)
    found: list[slice] = []
    for dim, extent in zip(entry.type.dims, sizes.local_shape(entry.type), strict=True):
        start = mesh.position(place, dim.axes) * extent
        found.append(slice(start, start + extent))
    return tuple(found)


def _outcome(folder: Path, number: int) -> Outcome:
    plan = msgspec.json.decode((folder / f"plan{number}.json").read_bytes(), type=Plan)
    names = [f"told{number}.{rank}" for rank in range(plan.program.mesh.size)]
    told = [msgspec.json.decode((folder / f"{n}.json").read_bytes(), type=Told) for n in names]
    assert all(other == told[0] for other in told), "ranks differ in loss, norm or collectives"
    parts = [load_file(folder / f"{name}.safetensors") for name in names]
    whole = {key: _whole(plan, key, parts) for key in parts[0]}
    return Outcome(plan, told[0], _under(whole, "first/"), _under(whole, "last/"))


def _under(found: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def _whole(plan: Plan, key: str, parts: Sequence[Mapping[str, Tensor]]) -> Tensor:
    """The ranks' parts put together; a part that several ranks hold is the same on all."""
    entry = next(s for s in plan.stored if s.name == key.split("/", 1)[1])
    sizes = plan.program.sizes
    whole = torch.full(sizes.shape(entry.type), torch.nan, dtype=torch.float64)
    for rank, held in enumerate(parts):
        place, part = whole[region(entry, sizes, rank)], held[key].double()
        assert place.isnan().all() or torch.equal(place, part), f"ranks differ in {key}"
        place.copy_(part)
    assert not whole.isnan().any(), f"{key} is not whole"
    return whole
