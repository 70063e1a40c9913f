"""`fllmc import`: a folder of another format made into a checkpoint."""

from __future__ import annotations

from pathlib import Path

import click

from fllmc.cli.group import Command
from fllmc.cli.options import overrides, set_option
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE


@click.command(cls=Command, name="import")
@click.argument("spec", metavar="SPEC")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="CKPT",
    type=click.Path(path_type=Path),
    help="The folder to write.",
)
@set_option
def command(spec: str, folder: Path, output: Path, sets: tuple[str, ...]) -> None:
    """Make a checkpoint of a Hugging Face FOLDER, by the names that SPEC declares.

    Sizes of dims come from FOLDER's config.json. Every tensor is kept bit for bit, under the names
    and in the layout of the spec; `init: checkpoint("CKPT")` in a `train` section begins with it.

    \b
    fllmc import llama3_8b Llama-3-8B/ -o llama.ckpt
    fllmc import my_model.fllm folder/ -o my.ckpt --set dims.layers=12
    """
    from fllmc.cli.errors import NotWritable
    from fllmc.cli.foreign import opened_folder
    from fllmc.cli.output import show
    from fllmc.runtime.foreign.importing import import_folder

    mapping, opened, sizes = opened_folder(spec, folder, overrides(sets))
    try:
        done = import_folder(mapping, opened, output)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(NotWritable(NOWHERE, str(output), reason)) from error
    show(f"{done.elements:,} parameters in {done.tensors} tensors, from {done.foreign} of {folder}")
    show("  " + ", ".join(f"{dim} {size:,}" for dim, size in sizes))
    show(f"  written to {done.path}")
