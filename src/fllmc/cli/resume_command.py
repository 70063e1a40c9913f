"""`fllmc resume`: go on with a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fllmc.cli.group import Command
from fllmc.cli.options import mesh_option, overrides, training_options
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE
from fllmc.runtime.options import Device

if TYPE_CHECKING:
    from fllmc.cli.opening import Opened

SETTINGS = "--set"
"""The source under which an artifact keeps the options `--set`, one a line."""


@click.command(cls=Command, name="resume")
@click.argument("run", metavar="RUN")
@mesh_option
@training_options
def command(
    run: str, mesh: str, steps: int, device: Device, threads: int, keep: int, quiet: bool
) -> int:
    """Go on with the run in the folder RUN from its newest checkpoint.

    On the run's own mesh the losses are bit for bit those of a run that was never interrupted. With
    --mesh its spec is compiled again for another mesh, and every tensor is as it was saved.
    """
    from fllmc.cli.errors import NoRun
    from fllmc.cli.opening import folder_of, opened
    from fllmc.cli.starting import options_for, tell_once
    from fllmc.runtime.launch import launch
    from fllmc.runtime.run_folder import ARTIFACT

    kept = str(Path(run) / ARTIFACT)
    if not Path(kept).is_dir():
        raise DiagnosticError(NoRun(NOWHERE, run, ARTIFACT))
    found = opened(kept, tell=tell_once) if not mesh else recompiled(kept, mesh)
    options = options_for(
        found,
        folder=run,
        resume=True,
        steps=steps,
        device=device,
        threads=threads,
        keep=keep,
        quiet=quiet,
    )
    with folder_of(found) as folder:
        return launch(found.plan, found.source, options, folder, found.later)


def recompiled(kept: str, mesh: str) -> Opened:
    """The spec that a run's artifact was compiled from, compiled for another mesh."""
    from fllmc.cli.errors import SpecChanged
    from fllmc.cli.opening import opened
    from fllmc.cli.starting import tell_once
    from fllmc.frontend.library import read

    before = opened(kept, tell=lambda text: None)
    texts = dict(before.sources)
    settings = texts.pop(SETTINGS, "")
    for file, text in texts.items():
        try:
            same = read(file) == text
        except DiagnosticError:
            same = False
        if not same:
            raise DiagnosticError(SpecChanged(NOWHERE, file))
    main, _ = before.sources[0]
    return opened(main, mesh, overrides(settings.splitlines()), tell_once)
