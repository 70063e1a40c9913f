"""`fllmc show`: a spec as it is read, with every default if asked for."""

from __future__ import annotations

import click

from fllmc.cli.exits import SUCCESS
from fllmc.cli.group import Command


@click.command(cls=Command, name="show", short_help="Print a spec, its defaults written out.")
@click.argument("spec")
@click.option("--resolved", is_flag=True, help="One file without imports, every default stated.")
@click.option("--train", default="", metavar="NAME", help="The run, where the file has several.")
def command(spec: str, resolved: bool, train: str) -> int:
    """Print a SPEC: a path, or the name of one that ships.

    With --resolved the run is printed as one file: imported blocks stand in it, and all that the
    spec leaves to defaults is stated. It compiles to the same plan.

    \b
    fllmc show quickstart
    fllmc show lora --resolved > all.fllm
    """
    from fllmc.frontend import resolving
    from fllmc.frontend.format import format_source
    from fllmc.frontend.library import read, spec_path

    if resolved:
        text = resolving.resolve(spec, train)
    else:
        path = spec_path(spec)
        text = format_source(read(path), path)
    click.echo(text, nl=False)
    return SUCCESS
