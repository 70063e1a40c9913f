"""Exit statuses of a run, and which one a diagnostic means. Scripts may rely on them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fllmc.ir.diagnostics import Diagnostic
from fllmc.runtime import errors, run_errors

SUCCESS: Final = 0
BAD_INPUT: Final = 1
NUMERIC: Final = 4
ENVIRONMENT: Final = 5
WORKER_FAILED: Final = 7
INTERNAL: Final = 70
STOPPED: Final = 75
"""Stopped on a signal with a checkpoint saved: `resume` goes on from there."""
SIGNALLED: Final = 128
"""Plus the signal's number: stopped at once, by a second signal."""

_LACKING = (errors.SourceMissing, errors.SourceUnreadable, errors.BuiltinAbsent)


def status_of(diagnostics: Iterable[Diagnostic]) -> int:
    """The exit status that these diagnostics mean: that of the first with one of its own."""
    for found in diagnostics:
        if isinstance(found, run_errors.NotFinite):
            return NUMERIC
        if isinstance(found, run_errors.WorkerFailed | run_errors.WorkerKilled):
            return WORKER_FAILED
        if found.code.startswith("E08") or isinstance(found, _LACKING):
            return ENVIRONMENT
    return BAD_INPUT
