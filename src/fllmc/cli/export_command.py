"""`fllmc export`: a checkpoint written as a folder of another format."""

from __future__ import annotations

from pathlib import Path

import click

from fllmc.cli.group import Command
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE


@click.command(cls=Command, name="export")
@click.argument("source", metavar="RUN|CKPT", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="The folder to write.",
)
@click.option(
    "--dtype",
    type=click.Choice(["f64", "f32", "bf16", "f16"]),
    help="Convert all tensors; else each is as it is stored.",
)
@click.option(
    "--shard-gb",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="The most that a file holds, in 10^9 bytes.",
)
def command(source: Path, output: Path, dtype: str | None, shard_gb: float) -> None:
    """Write the newest checkpoint of a RUN, or what was imported to CKPT, as a Hugging Face folder.

    Names and layouts are those of the spec's `checkpoint` section, and so is config.json, on top of
    what was imported. Low-rank updates are added to their weights. `transformers` loads the folder.

    \b
    fllmc export runs/pretrain-3f9a01c7 -o model/ --dtype bf16
    fllmc export llama.ckpt -o model/
    """
    from fllmc.cli.errors import NotWritable
    from fllmc.cli.output import report, show
    from fllmc.runtime.machine import require_packages

    require_packages()
    from fllmc.cli.opening import artifact
    from fllmc.runtime.foreign.exporting import export
    from fllmc.runtime.foreign.sources import Source, imported_source, run_source
    from fllmc.runtime.run_folder import ARTIFACT

    is_run = (source / ARTIFACT).is_dir()
    found: Source = (
        run_source(artifact(source / ARTIFACT).plan, source)
        if is_run
        else (imported_source(source))
    )
    report(found.skipped, {})
    try:
        with found.checkpoint as checkpoint:
            size = int(shard_gb * 10**9)
            done = export(
                found.mapping, checkpoint, output, found.beside, dtype or "", size, found.read
            )
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(NotWritable(NOWHERE, str(output), reason)) from error
    files = f"{len(done.files)} file{'s' * (len(done.files) > 1)}"
    show(f"{done.tensors} tensors, {done.size:,} bytes in {files} of {output}")
