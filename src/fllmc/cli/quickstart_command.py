"""`fllmc quickstart`: from a spec to a text sample in one command."""

from __future__ import annotations

import click

from fllmc.cli.group import Command
from fllmc.cli.options import mesh_option

SPEC = "quickstart"


@click.command(cls=Command, name="quickstart")
@mesh_option
@click.option("--steps", default=0, type=click.IntRange(min=0), help="Stop after this many steps.")
def command(mesh: str, steps: int) -> int:
    """Compile the small Llama that ships, train it on this machine, and let it write.

    It learns byte by byte from the reference text inside Python itself, so nothing is fetched. The
    loss on text that it has not seen is compared with that of counting letter pairs.
    """
    from fllmc.cli.exits import SUCCESS
    from fllmc.cli.opening import folder_of, opened
    from fllmc.cli.output import paint, say
    from fllmc.cli.starting import options_for, tell_once
    from fllmc.cli.summary import summary_lines
    from fllmc.runtime.launch import launch
    from fllmc.runtime.options import Options
    from fllmc.runtime.run_folder import choose_folder

    found = opened(SPEC, mesh, tell=tell_once)
    for line in summary_lines(found.name, found.plan, paint()):
        say(line)
    run = choose_folder(found.plan, Options(name=SPEC))
    options = options_for(found, folder=str(run), steps=steps, baseline=True)
    with folder_of(found) as folder:
        status = launch(found.plan, found.source, options, folder, found.later)
    if status == SUCCESS:
        for line in farewell(str(run)):
            say(line)
    return status


def farewell(run: str) -> list[str]:
    """Where everything is, and what to do next."""
    return [
        "",
        f"the plan, readable:   {run}/plan.fllmx/report.html",
        f"the generated code:   {run}/plan.fllmx/schedule/step.py",
        f"metrics, checkpoints: {run}/metrics.jsonl, {run}/checkpoints",
        "next:",
        "  fllmc quickstart --mesh 2x2                     the same losses from four processes",
        "  fllmc inspect quickstart --mesh 2x2 --decisions  what the compiler chose, and why",
        "  fllmc compile llama3_8b --target h100           plan 256 GPUs from here",
    ]
