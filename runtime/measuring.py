"""What a run measures of itself: speed, memory, and whether collectives are as planned."""

from __future__ import annotations

import resource
import time
from pathlib import Path

from fllmc.ir.diagnostics import InternalError
from fllmc.runtime.executor import Executor


def peak_resident_bytes() -> int:
    """The most memory that this process has held so far, torch and Python included.

    Linux carries `ru_maxrss` over from the process that started this one, so it comes second.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class Stopwatch:
    """Seconds spent in steps since the last reading; other work is not counted."""

    def __init__(self) -> None:
        self.seconds, self.steps = 0.0, 0
        self._begun = 0.0

    def begin(self) -> None:
        """A step begins."""
        self._begun = time.perf_counter()

    def end(self) -> float:
        """A step has ended; its seconds."""
        took = time.perf_counter() - self._begun
        self.seconds += took
        self.steps += 1
        return took

    def mean(self) -> float:
        """Mean seconds of the steps since the last call."""
        mean = self.seconds / max(1, self.steps)
        self.seconds, self.steps = 0.0, 0
        return mean


def check_collectives(executor: Executor) -> int:
    """Bytes that this rank passed to collectives. InternalError where they are not as planned.

    Where only a run knows how many rows are moved, none is more than planned.
    """
    plan = executor.plan
    wanted: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for each in plan.collectives:
        wanted[each.site] = wanted.get(each.site, 0) + each.calls * executor.runs[each.entry]
        sizes[each.site] = each.bytes
    total = 0
    for site in sorted(wanted.keys() | executor.counted.keys()):
        calls, size = executor.counted.get(site, (0, sizes.get(site, 0)))
        planned = wanted.get(site, 0), sizes.get(site, 0)
        ragged = site in executor.ragged
        if calls != planned[0] or size > planned[1] or (size < planned[1] and not ragged):
            said = f"{planned[0]} calls of {planned[1]} bytes"
            raise InternalError(f"collective {site} made {calls} calls of {size}, planned {said}")
        total += executor.ragged.get(site, calls * size)
    return total
