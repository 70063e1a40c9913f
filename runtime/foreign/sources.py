"""What can be exported, and what a run can begin with: runs, imported checkpoints, folders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.plan import Plan
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint.load import Checkpoint, open_latest
from fllmc.runtime.foreign import errors
from fllmc.runtime.foreign.importing import FOREIGN, NAMES
from fllmc.runtime.merging import merged_reader
from fllmc.runtime.run_folder import CHECKPOINTS


class Source(msgspec.Struct, frozen=True):
    """A checkpoint, how it is exported, and files that go with it.

    `read` gives a tensor of ours, with low-rank updates added.
    """

    mapping: Foreign
    checkpoint: Checkpoint
    beside: Path
    read: Callable[[str], Tensor]
    skipped: tuple[Diagnostic, ...] = ()


def imported_source(path: Path) -> Source:
    """What was imported to a folder. Raises DiagnosticError."""
    if not (path / NAMES).is_file():
        what = f"`{path}` is neither the folder of a run nor one that was imported to: it"
        raise DiagnosticError(errors.NoForeignNames(NOWHERE, what))
    try:
        mapping = msgspec.json.decode((path / NAMES).read_bytes(), type=Foreign)
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        bad = errors.BadIndex(NOWHERE, str(path / NAMES), str(error))
        raise DiagnosticError(bad) from error
    latest = open_latest(path)
    return Source(
        mapping, latest.checkpoint, path / FOREIGN, latest.checkpoint.read_value, latest.skipped
    )


def run_source(plan: Plan, folder: Path) -> Source:
    """The newest checkpoint of a run. Raises DiagnosticError."""
    if plan.foreign is None:
        raise DiagnosticError(errors.NoForeignNames(NOWHERE, f"the model of `{folder}`"))
    latest = open_latest(folder / CHECKPOINTS)
    read = merged_reader(plan, latest.checkpoint)
    return Source(plan.foreign, latest.checkpoint, folder / FOREIGN, read, latest.skipped)
