"""Runs compiled plans on one or several processes and gives what they computed, whole.

A group of processes is started once and takes all cases in order: each compiles its share, then
each case runs on as many of them as its mesh has devices. Everything travels as files of a folder.
Tensors go by the names that users and checkpoints know, a layer's apart: `body.0.attn.wq`.
"""

from __future__ import annotations

import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from fllmc.driver import compile_spec
from fllmc.ir.plan import Plan
from fllmc.runtime.checkpoint.changes import HeldRows
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.data.windows import Batch as DataBatch
from fllmc.runtime.executor import Executor
from fllmc.runtime.feeding import Feeder
from fllmc.runtime.initialise import initialise, view_of
from fllmc.runtime.measuring import check_collectives
from fllmc.runtime.parts import Part, absent, lasting_parts, rows_held
from fllmc.runtime.ranks import communicator
from tests.oracle.reference import Batch

FIELDS = ("tokens", "targets", "weights")
PATIENCE = 120.0
"""Seconds to wait for the other processes."""


class Case(NamedTuple):
    """A spec on a mesh."""

    name: str
    text: str
    mesh: str


class Told(NamedTuple):
    """What a rank says of its run.

    `counted` are calls and bytes of each collective site; where calls differ in bytes, `ragged` has
    calls and the bytes of all. `copied` are bytes that were packed and unpacked for collectives.
    """

    losses: list[float]
    grad_norms: list[float]
    counted: dict[int, tuple[int, int]]
    arena_bytes: int
    ragged: dict[int, tuple[int, int]]
    copied: int


class Outcome(NamedTuple):
    """What a run of a case left: states after the first step, parameters and states after the last.

    Tensors are whole, put together from the ranks' parts, in fp64; `NAME#m` is a state of `NAME`.
    Layers stand alone. `ragged` is of each rank.
    """

    plan: Plan
    told: Told
    first: dict[str, Tensor]
    last: dict[str, Tensor]
    ragged: list[dict[int, tuple[int, int]]]


def run_cases(
    cases: Sequence[Case],
    params: Mapping[str, Tensor] | None,
    batches: Sequence[Batch],
    processes: int = 4,
) -> dict[str, Outcome]:
    """Train each case on the batches, beginning with these parameters, or as its spec says.

    AssertionError with what went wrong in each case that does not come to its end.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if params is not None:
            save_file(dict(params), folder / "params.safetensors")
        for number, batch in enumerate(batches):
            save_file(batch._asdict(), folder / f"batch{number}.safetensors")
        (folder / "cases.json").write_bytes(msgspec.json.encode(cases))
        spawn(_process, (name, processes), nprocs=processes)
        wrong = {path.stem: path.read_text() for path in sorted(folder.glob("*.wrong"))}
        failed = {c.name: wrong[f"{n}"] for n, c in enumerate(cases) if f"{n}" in wrong}
        assert not failed, "\n".join(f"{name}: {text}" for name, text in failed.items())
        return {case.name: _outcome(folder, number) for number, case in enumerate(cases)}


def _process(index: int, name: str, processes: int) -> None:
    """One process of the group: compile a share of the cases, then take part in each."""
    torch.set_num_threads(1)
    folder = Path(name)
    cases = msgspec.json.decode((folder / "cases.json").read_bytes(), type=list[Case])
    for number in range(index, len(cases), processes):
        with _told_of(folder, number):
            _compile(folder, number, cases[number])
    turn = 0
    for number in range(len(cases)):
        if not _wait_for(folder, number):
            continue
        plan = msgspec.json.decode((folder / f"plan{number}.json").read_bytes(), type=Plan)
        # Small meshes take turns on the processes, so that none is idle.
        rank = (index - turn) % processes
        turn += plan.program.mesh.size
        if rank < plan.program.mesh.size:
            with _told_of(folder, number):
                _run(folder, number, plan, rank)


@contextmanager
def _told_of(folder: Path, number: int) -> Iterator[None]:
    """Leaves what goes wrong with a case in a file; the process lives on for the next one."""
    try:
        yield
    except Exception as error:
        found = getattr(error, "diagnostics", ())
        text = "; ".join(f"{each.code} {each.message()}" for each in found) if found else ""
        with (folder / f"{number}.wrong").open("a") as file:
            file.write(text or "".join(traceback.format_exception(error)[-2:]))
        if dist.is_initialized():
            dist.destroy_process_group()  # so that the others do not wait


def _compile(folder: Path, number: int, case: Case) -> None:
    spec = folder / f"spec{number}.fllm"
    spec.write_text(case.text)
    compiled = compile_spec(str(spec), mesh=case.mesh)
    (folder / f"source{number}.py").write_text(compiled.source)
    part = folder / f"plan{number}.part"
    part.write_bytes(msgspec.json.encode(compiled.plan))
    part.rename(part.with_suffix(".json"))


def _wait_for(folder: Path, number: int) -> bool:
    """Whether the case compiles, once that is known."""
    begin = time.monotonic()
    plan, wrong = folder / f"plan{number}.json", folder / f"{number}.wrong"
    while not (plan.exists() or wrong.exists()):
        if time.monotonic() - begin > PATIENCE:
            raise TimeoutError(plan.name)
        time.sleep(0.01)
    return plan.exists()


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
    _train(folder, number, plan, rank, communicator(plan, rank))
    dist.barrier()
    dist.destroy_process_group()


def _train(folder: Path, number: int, plan: Plan, rank: int, comm: Communicator | None) -> None:
    """One rank's run, and what it saw."""
    executor = Executor(plan, (folder / f"source{number}.py").read_text(), rank, comm)
    parts = lasting_parts(plan, rank)
    if (folder / "params.safetensors").exists():
        given = load_file(folder / "params.safetensors")
        for part in parts:
            if part.name in given:
                view_of(part, executor).copy_(given[part.name][part.slices])
    else:
        initialise(plan, executor, parts)
    told = Told([], [], {}, executor.arena.numel() * executor.arena.element_size(), {}, 0)
    tensors: dict[str, Tensor] = {}
    feeder = Feeder(plan, executor, "train", rank)
    for step, path in enumerate(sorted(folder.glob("batch*.safetensors")), 1):
        feeder.fill(0, partial(_read, load_file(path)))
        executor.run("train", step=step)
        told.losses.append(executor.tensor("loss").item())
        told.grad_norms.append(executor.tensor("grad_norm").item())
        when = {1: "first"}.get(step)
        if when:
            tensors |= _held(when, [p for p in parts if "#" in p.name], executor)
    check_collectives(executor)
    for site, (calls, moved) in executor.counted.items():
        if site in executor.ragged:
            told.ragged[site] = calls, executor.ragged[site]
        else:
            told.counted[site] = calls, moved
    told = told._replace(copied=comm.copied if comm else 0)
    tensors |= _held("last", parts, executor)
    save_file(tensors, folder / f"told{number}.{rank}.safetensors")
    (folder / f"told{number}.{rank}.json").write_bytes(msgspec.json.encode(told))


def _read(batch: Mapping[str, Tensor], first: int, count: int) -> Any:
    """Samples of a batch, as a dataset would give them."""
    tokens, targets, weights = (batch[field][first : first + count].numpy() for field in FIELDS)
    return DataBatch(tokens, targets, weights)


def _held(when: str, parts: Sequence[Part], executor: Executor) -> dict[str, Tensor]:
    """Copies of a rank's parts, under names that say where they begin."""
    return {
        f"{when}/{part.name}@{','.join(map(str, part.offsets))}": view_of(part, executor).clone()
        for part in parts
    }


def _outcome(folder: Path, number: int) -> Outcome:
    plan = msgspec.json.decode((folder / f"plan{number}.json").read_bytes(), type=Plan)
    names = [f"told{number}.{rank}" for rank in range(plan.program.mesh.size)]
    told = [msgspec.json.decode((folder / f"{n}.json").read_bytes(), type=Told) for n in names]
    for rank, other in enumerate(told):
        first = told[_first_of_stage(plan, rank)]
        same = other._replace(ragged={}) == first._replace(ragged={})
        assert same, "ranks of a stage differ in loss, norm or collectives"
        assert other.losses == told[0].losses, "stages differ in loss"
        assert other.grad_norms == told[0].grad_norms, "stages differ in the norm"
    held = [load_file(folder / f"{name}.safetensors") for name in names]
    parts = [lasting_parts(plan, rank) for rank in range(plan.program.mesh.size)]
    first, last = (_whole(when, parts, held, rows_held(plan)) for when in ("first", "last"))
    return Outcome(plan, told[0], first, last, [each.ragged for each in told])


def _first_of_stage(plan: Plan, rank: int) -> int:
    """The first rank that carries out the same programs."""
    if not plan.stages:
        return 0
    mesh = plan.program.mesh
    stage = mesh.coordinates(rank)[plan.pipe]
    return next(r for r in range(mesh.size) if mesh.coordinates(r)[plan.pipe] == stage)


def _whole(
    when: str,
    parts: Sequence[Sequence[Part]],
    held: Sequence[Mapping[str, Tensor]],
    rows: HeldRows,
) -> dict[str, Tensor]:
    """The ranks' parts put together; a part that several ranks hold is the same on all.

    Rows of which no rank is to hold a value are zero.
    """
    found: dict[str, Tensor] = {}
    for mine, values in zip(parts, held, strict=True):
        for part in mine:
            value = values.get(f"{when}/{part.name}@{','.join(map(str, part.offsets))}")
            if value is not None:
                empty = torch.full(part.shape, torch.nan, dtype=torch.float64)
                place = found.setdefault(part.name, empty)[part.slices]
                same = place.isnan().all() or torch.equal(place, value.double())
                assert same, f"ranks differ in {part.name}"
                place.copy_(value)
    for name in found.keys() & rows.keys():
        for first, stop in absent(found[name].shape[0], rows[name]):
            assert found[name][first:stop].isnan().all(), f"{name} has rows that it should not have"
            found[name][first:stop] = 0.0
    missing = [name for name, value in found.items() if value.isnan().any()]
    assert not missing, f"{missing} are not whole"
    return found
