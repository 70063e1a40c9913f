"""The processes of a run: joining the others, training, and leaving."""

from __future__ import annotations

import os
import sys
import time
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from msgspec import structs

from fllmc.ir.plan import Plan
from fllmc.ir.types import bare_axes
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.failures import leave_failure
from fllmc.runtime.machine import Place
from fllmc.runtime.options import Options
from fllmc.runtime.trainer import Outcome, train

PATIENCE = timedelta(minutes=30)
"""How long a process waits in a collective for the others."""

LAST_WORDS = 2.0
"""Seconds for which a process that lost another lets the launcher see how that one ended."""


class Job(msgspec.Struct, frozen=True):
    """What each process of a run is started with; `threads` and `device` are chosen already.

    A process that `stays` does further parts of the run with the others.
    """

    plan: Plan
    source: str
    options: Options
    device: str
    threads: int
    stays: bool = False


def communicator(plan: Plan, rank: int) -> Communicator:
    """The groups of all stages' collectives; every rank makes all of them, in one order."""
    every = [collective for stage in plan.by_stage for collective in stage.collectives]
    some = tuple((each.axes, each.among) for each in every if each.among)
    pipes = (plan.pipe,) if plan.stages else ()
    return Communicator(plan.program.mesh, rank, axes_used(plan), some, pipes)


def axes_used(plan: Plan) -> tuple[tuple[str, ...], ...]:
    """All sets of axes that a run of the plan needs a group for."""
    found = {
        collective.axes
        for stage in plan.by_stage
        for collective in stage.collectives
        if collective.kind not in ("send", "recv") and not collective.among
    }
    for entry in plan.program.entries:
        for kind in plan.program.function(entry).signature.results:
            found |= {kind.partial, *(bare_axes(dim.axes) for dim in kind.dims)}
    return tuple(sorted(axes for axes in found if axes))


def run_alone(job: Job) -> Outcome:
    """The whole run in this process."""
    torch.set_num_threads(job.threads)
    return train(job.plan, job.source, job.options, None, 0, job.device)


def run_joined(job: Job, place: Place) -> Outcome:
    """One rank of a run whose processes have been started, by the launcher's variables.

    The run's folder is the one that rank 0 has chosen.
    """
    torch.set_num_threads(job.threads)
    device, backend = "cpu", "gloo"
    if job.device == "cuda":
        torch.cuda.set_device(place.local)
        device, backend = f"cuda:{place.local}", "cpu:gloo,cuda:nccl"
    if not dist.is_initialized():
        dist.init_process_group(backend, timeout=PATIENCE)
    comm = communicator(job.plan, place.rank)
    options = structs.replace(job.options, folder=comm.gather(job.options.folder)[0])
    outcome = train(job.plan, job.source, options, comm, place.rank, device)
    dist.barrier()  # nobody leaves while another still reads from it
    if not job.stays:
        dist.destroy_process_group()
    return outcome


def worker(encoded: bytes, post: str) -> int:
    """A process that the local launch started. Its failure is left in the folder `post`."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host's own name need not resolve
    job = msgspec.msgpack.decode(encoded, type=Job)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    place = Place(*(int(os.environ[name]) for name in names))
    try:
        return run_joined(job, place).status
    except Exception as error:
        failure = leave_failure(error, place.rank, job.options, Path(post))
        if failure.follows:
            time.sleep(LAST_WORDS)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(failure.status)  # at once, so that the others do not wait
