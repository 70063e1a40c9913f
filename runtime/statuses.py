"""Exit statuses of a run, and which one a diagnostic means. Scripts may rely on them."""

from __future__ import annotations

from collections.abc import Iterable

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.statuses import (
    BAD_INPUT,
    ENVIRONMENT,
    INTERNAL,
    NUMERIC,
    SIGNALLED,
    STOPPED,
    SUCCESS,
    WORKER_FAILED,
)
from fllmc.runtime import errors, run_errors

__all__ = [
    "BAD_INPUT",
    "ENVIRONMENT",
    "INTERNAL",
    "NUMERIC",
    "SIGNALLED",
    "STOPPED",
    "SUCCESS",
    "WORKER_FAILED",
    "status_of",
]

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
