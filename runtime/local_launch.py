"""Starting a process for each device of a mesh on this machine, by torch's elastic launch."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import tempfile
import time
import uuid
from pathlib import Path
from types import FrameType

import msgspec
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from fllmc.ir.render import render
from fllmc.ir.span import NOWHERE
from fllmc.runtime.failures import Failure, first_failure
from fllmc.runtime.ranks import Job, worker
from fllmc.runtime.run_errors import WorkerKilled
from fllmc.runtime.statuses import INTERNAL, SIGNALLED, WORKER_FAILED
from fllmc.runtime.stopping import ECHO_SECONDS, heeded

CLOSING_SECONDS = 5
"""How long the processes left over from a failure have to end by themselves."""


def start_local(job: Job) -> int | Failure:
    """Run the job's processes to their end: the exit status, or the failure that came first."""
    processes = job.plan.program.mesh.size
    for name in ("torch.distributed.elastic", "torch.multiprocessing"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # what it would say is said here
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        start_method="spawn",
        signals_to_handle="SIGQUIT",
        shutdown_timeout=CLOSING_SECONDS,
    )
    relay = Relay()
    with tempfile.TemporaryDirectory(prefix="fllmc-") as post:
        before = {number: signal.signal(number, relay.heard) for number in heeded()}
        try:
            statuses = elastic_launch(config, worker)(msgspec.msgpack.encode(job), post)
            return max(statuses.values())
        except SignalException:
            return SIGNALLED + relay.number
        except ChildFailedError as error:
            if relay.number and not any(Path(post).iterdir()):
                return SIGNALLED + relay.number  # it came before there was anything to save
            told = first_failure(Path(post))
            return told if told and not told.follows else _killed(error, job) or told or INTERNAL
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Relay:
    """Passes a first signal on to the processes, which save and stop; a second one ends them."""

    def __init__(self) -> None:
        self.number = 0
        self._at = 0.0

    def heard(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        now = time.monotonic()
        if self.number and now - self._at > ECHO_SECONDS:
            raise SignalException("stopped at once", signal.SIGKILL)
        if not self.number:
            self.number, self._at = number, now
            for child in multiprocessing.active_children():
                if child.pid:
                    os.kill(child.pid, signal.SIGTERM)


def _killed(error: ChildFailedError, job: Job) -> Failure | None:
    """A process that left no record: ended by a signal or by a library."""
    silent = {rank: found.exitcode for rank, found in error.failures.items()}
    for rank, code in sorted(silent.items()):
        if code == WORKER_FAILED:
            continue
        how = f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"status {code}"
        text = render([WorkerKilled(NOWHERE, rank, how)], {}, job.options.color)
        return Failure(rank, 0, WORKER_FAILED, text)
    return None
