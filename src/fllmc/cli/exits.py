"""Exit statuses, which scripts may rely on, and which one a diagnostic means."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.statuses import (
    BAD_INPUT,
    ENVIRONMENT,
    INFEASIBLE,
    INTERNAL,
    INTERRUPTED,
    NUMERIC,
    STOPPED,
    SUCCESS,
    USAGE,
    WORKER_FAILED,
)

MEANINGS: Final = {
    SUCCESS: "success; there may have been warnings",
    BAD_INPUT: "the input is wrong, and diagnostics say how; `fmt --check`: a file would change",
    USAGE: "the command line is wrong",
    INFEASIBLE: "the input is right, but no plan of it fits mesh, memory or counts",
    NUMERIC: "the run stopped because a loss or gradient norm is not finite",
    ENVIRONMENT: "this machine lacks what is needed: torch, devices, memory, data files",
    WORKER_FAILED: "a process of the run failed, and its first error was printed",
    INTERNAL: "a fault of fllmc itself; a reproducer was written where there is one",
    STOPPED: "stopped on a signal with a checkpoint saved; `fllmc resume` goes on from there",
    INTERRUPTED: "interrupted with Ctrl-C (143: terminated) before anything could be saved",
}


def exit_status(diagnostics: Sequence[Diagnostic]) -> int:
    """The status that these diagnostics mean."""
    errors = [found for found in diagnostics if found.severity == "error"]
    if errors and all(found.infeasible for found in errors):
        return INFEASIBLE
    if any(found.code[:3] in ("E06", "E07", "E08") for found in diagnostics):
        from fllmc.runtime.statuses import status_of

        return status_of(diagnostics)
    return BAD_INPUT
