"""The folder of a run: `runs/NAME-HASH/` with metrics, checkpoints, its artifact, its faults.

runs/quickstart-3f9a01c7/
  plan.fllmx/         the artifact that is run, as it was opened
  metrics.jsonl       a record for each step
  checkpoints/        step-00000100/, ...
  tokenizer.json      the vocabulary, where one was trained
  failures/           tracebacks of processes that failed
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.ir.span import NOWHERE
from fllmc.runtime.options import Options
from fllmc.runtime.run_errors import RunFolderInUse, RunFolderUnusable

METRICS = "metrics.jsonl"
ARTIFACT = "plan.fllmx"
FAILURES = "failures"
CHECKPOINTS = "checkpoints"


def plan_hash(plan: Plan) -> str:
    """The SHA-256 of the plan's bytes as they lie in an artifact."""
    return hashlib.sha256(
        msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"
    ).hexdigest()


def choose_folder(plan: Plan, options: Options) -> Path:
    """The folder for this run, created. A new run gets one that no other run has.

    Raises DiagnosticError where a folder that was asked for already holds a run.
    """
    if options.folder:
        folder = Path(options.folder)
        if _is_used(folder) and not options.resume:
            raise DiagnosticError(RunFolderInUse(NOWHERE, str(folder)))
        _make(folder)
        return folder
    name = f"{options.name or plan.train.name}-{plan_hash(plan)[:8]}"
    base = Path(options.runs) / name
    folder, number = base, 1
    while not options.resume and _is_used(folder):
        number += 1
        folder = base.with_name(f"{name}.{number}")
    _make(folder)
    return folder


def keep_artifact(folder: Path, artifact: Path) -> None:
    """Copy the artifact into the run's folder, whole or not at all, in place of an earlier one."""
    target = folder / ARTIFACT
    if artifact.resolve() == target.resolve():
        return
    fresh = folder / f".{ARTIFACT}.{os.getpid()}"
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.copytree(artifact, fresh)
        if target.exists():
            shutil.rmtree(target)
        fresh.rename(target)
    except OSError as error:
        raise _unusable(folder, error) from error


def _is_used(folder: Path) -> bool:
    return (folder / METRICS).exists() or (folder / CHECKPOINTS).exists()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: OSError) -> DiagnosticError:
    return DiagnosticError(RunFolderUnusable(NOWHERE, str(folder), error.strerror or str(error)))
