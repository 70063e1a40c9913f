"""`fllmc merge`: a run's weights with its low-rank updates in them."""

from __future__ import annotations

from pathlib import Path

import click

from fllmc.cli.group import Command
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command, name="merge")
@click.argument("run", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--out", type=FILE, required=True, metavar="FILE", help="The file to write.")
@click.option("--undo", type=FILE, metavar="FILE", help="Take the updates off this file's weights.")
def command(run: Path, out: Path, undo: Path | None) -> None:
    """Add the low-rank updates of the run in the folder RUN to its weights.

    Reads the newest checkpoint and writes the weights under the names that they have without an
    adapter, as safetensors. Sums are made in f64 and rounded once to each weight's dtype.

    \b
    fllmc merge runs/sft --out merged.safetensors
    fllmc merge runs/sft --undo merged.safetensors --out base.safetensors
    """
    from fllmc.cli.errors import NoRun, NotReadable, NotWritable
    from fllmc.cli.opening import artifact
    from fllmc.cli.output import report, show
    from fllmc.runtime.machine import require_packages
    from fllmc.runtime.run_folder import ARTIFACT

    if not (run / ARTIFACT).is_dir():
        raise DiagnosticError(NoRun(NOWHERE, str(run), ARTIFACT))
    if undo and not undo.is_file():
        raise DiagnosticError(NotReadable(NOWHERE, str(undo), "no such file"))
    require_packages()
    from fllmc.runtime.merging import merge, unmerge

    plan = artifact(run / ARTIFACT).plan
    try:
        done = unmerge(plan, run, undo, out) if undo else merge(plan, run, out)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(NotWritable(NOWHERE, str(out), reason)) from error
    report(done.skipped, {})
    what = "taken off" if undo else "added"
    show(f"step {done.step}: {done.updates} updates {what}, {done.tensors} tensors in {out}")
