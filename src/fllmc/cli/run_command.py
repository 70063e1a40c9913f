"""`fllmc run`: train what an artifact or a spec describes."""

from __future__ import annotations

import click

from fllmc.cli.group import Command
from fllmc.cli.options import mesh_option, overrides, set_option, training_options
from fllmc.runtime.options import Device


@click.command(cls=Command, name="run")
@click.argument("artifact", metavar="ARTIFACT|SPEC")
@mesh_option
@set_option
@click.option("-o", "--output", metavar="RUN", default="", help="Folder; else runs/NAME-HASH.")
@training_options
def command(
    artifact: str,
    mesh: str,
    sets: tuple[str, ...],
    output: str,
    steps: int,
    device: Device,
    threads: int,
    keep: int,
    quiet: bool,
) -> int:
    """Train what ARTIFACT describes; a SPEC is compiled first.

    On one machine this starts a process for each device of the mesh. Under torchrun, or another
    launcher that sets RANK, WORLD_SIZE and LOCAL_RANK, this process joins the others. Metrics,
    checkpoints and the artifact are kept in the run's folder. Ctrl-C once saves and stops.

    \b
    fllmc run quickstart --mesh 2x1 --steps 50
    torchrun --nproc-per-node 8 -m fllmc run llama3_8b.fllmx
    """
    from fllmc.cli.opening import folder_of, opened
    from fllmc.cli.starting import options_for, tell_once
    from fllmc.runtime.launch import launch

    found = opened(artifact, mesh, overrides(sets), tell_once)
    options = options_for(
        found, folder=output, steps=steps, device=device, threads=threads, keep=keep, quiet=quiet
    )
    with folder_of(found) as folder:
        return launch(found.plan, found.source, options, folder, found.later)
