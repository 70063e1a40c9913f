"""Carrying out a plan on this machine, or as one process of many; gives the exit status.

Where a launcher such as torchrun has set RANK, WORLD_SIZE and LOCAL_RANK, this process is one of
the run's. Else a mesh of one device runs in this process, and for a larger one torch's elastic
launch starts a process for each device. Nothing here imports torch before all that can be checked
without it holds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import structs

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.runtime.errors import PruneFailed, SaveFailed
from fllmc.runtime.failures import Failure, describe_failure
from fllmc.runtime.machine import (
    Place,
    choose_device,
    joined,
    require_local,
    require_packages,
    require_world,
    share_cores,
    thread_count,
)
from fllmc.runtime.options import Options
from fllmc.runtime.run_errors import NotFinite
from fllmc.runtime.run_folder import CHECKPOINTS, choose_folder, keep_artifact
from fllmc.runtime.statuses import SUCCESS

if TYPE_CHECKING:
    from fllmc.runtime.ranks import Job


def launch(
    plan: Plan,
    source: str,
    options: Options,
    artifact: Path | None = None,
    later: Sequence[str] = (),
) -> int:
    """Run the plan and return the exit status. What goes wrong is printed on standard error.

    `source` is the schedule that follows from the plan, `later` are those of its later parts: each
    part goes on from the checkpoint that the one before it ended with. The artifact's folder,
    where given, is kept in the run's, for `resume`.
    """
    if not plan.later:
        return launch_part(plan, source, options, artifact, True)[0]
    done = steps_done(options)
    parts = list(zip(plan.parts, (source, *later), strict=True))
    status = SUCCESS
    for number, (part, text) in enumerate(parts):
        last = number == len(parts) - 1
        if done >= part.train.steps and not last:
            continue
        if options.steps and options.steps <= part.train.begin:
            break
        status, folder = launch_part(part, text, options, artifact, last)
        options = structs.replace(options, folder=folder, resume=True)
        artifact = None
        if status != SUCCESS:
            break
    return status


def steps_done(options: Options) -> int:
    """How far a run that is resumed has come."""
    if not options.resume:
        return 0
    from fllmc.runtime.checkpoint.folders import committed  # knows torch

    found = committed(Path(options.folder) / CHECKPOINTS)
    return found[-1].step if found else 0


def launch_part(
    plan: Plan, source: str, options: Options, artifact: Path | None, last: bool
) -> tuple[int, str]:
    """Run one plan: the exit status, and the folder of the run where this process knows it."""
    rank = 0
    try:
        place = joined(os.environ)
        rank = place.rank if place else 0
        job = _prepare(plan, source, options, artifact, place)
        job = structs.replace(job, stays=place is not None and not last)
    except Exception as error:
        # All ranks find the same fault before the run begins; one of them says so.
        told = describe_failure(error, rank, options)
        return _told(told, quiet=rank > 0), options.folder
    try:
        ended = _run(job, place)
    except Exception as error:
        ended = describe_failure(error, rank, job.options)
        return _told(ended, quiet=rank > 0 and _is_everyones(error)), job.options.folder
    return ended if isinstance(ended, int) else _told(ended), job.options.folder


def _prepare(
    plan: Plan, source: str, options: Options, artifact: Path | None, place: Place | None
) -> Job:
    """What the run's processes are started with, once all that can be checked is right."""
    mesh = plan.program.mesh
    if place:
        require_world(mesh, place)
    require_packages()
    share_cores()
    here = _local_world(place) if place else mesh.size
    device = choose_device(mesh, here, options)
    if place is None:
        require_local(plan, device)
    if place is None or place.rank == 0:
        folder = choose_folder(plan, options)
        options = structs.replace(options, folder=str(folder))
        if artifact:
            keep_artifact(folder, artifact)
    from fllmc.runtime.ranks import Job

    return Job(plan, source, options, device, thread_count(plan, here, options))


def _run(job: Job, place: Place | None) -> int | Failure:
    from fllmc.runtime.ranks import run_alone, run_joined

    if place:
        return run_joined(job, place).status
    if job.plan.program.mesh.size == 1:
        return run_alone(job).status
    from fllmc.runtime.local_launch import start_local

    return start_local(job)


def _is_everyones(error: Exception) -> bool:
    """Whether all ranks raise it alike, so that rank 0 speaks for all."""
    shared = (NotFinite, SaveFailed, PruneFailed)
    return isinstance(error, DiagnosticError) and isinstance(error.diagnostics[0], shared)


def _local_world(place: Place) -> int:
    """Processes that the launcher started on this machine."""
    given = os.environ.get("LOCAL_WORLD_SIZE", "")
    return int(given) if given.isascii() and given.isdigit() else place.world


def _told(failure: Failure, quiet: bool = False) -> int:
    if not quiet:
        print(failure.text, end="", file=sys.stderr, flush=True)
    return failure.status
