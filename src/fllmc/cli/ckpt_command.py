"""`fllmc ckpt verify`: whether a foreign folder comes back as it was, and what maps to what."""

from __future__ import annotations

from pathlib import Path

import click

from fllmc.cli.group import Command
from fllmc.cli.options import json_option, overrides, set_option


@click.command(cls=Command, name="ckpt")
@click.argument("action", type=click.Choice(["verify"]))
@click.argument("spec", metavar="SPEC")
@click.argument("folder", type=click.Path(path_type=Path))
@set_option
@json_option
def command(action: str, spec: str, folder: Path, sets: tuple[str, ...], as_json: bool) -> int:
    """Check a Hugging Face FOLDER against the names that SPEC declares, and print the mapping.

    Each tensor is read as an import reads it and put together as an export writes it, and must have
    the bytes that it had. Nothing is written.

    \b
    fllmc ckpt verify llama3_8b Llama-3-8B/
    """
    from fllmc.cli.exits import BAD_INPUT, SUCCESS
    from fllmc.cli.foreign import opened_folder
    from fllmc.cli.output import report, say, show, show_json

    mapping, opened, _ = opened_folder(spec, folder, overrides(sets))
    from fllmc.runtime.foreign.verifying import rows, verify

    done = verify(mapping, opened)
    if as_json:
        table = [
            {"ours": row.ours, "foreign": row.foreign, "shape": row.shape} for row in rows(mapping)
        ]
        show_json(
            "fllmc.ckpt/1",
            {"ok": not done.faults, "tensors": done.tensors, "bytes": done.size, "mapping": table},
        )
    else:
        listed = rows(mapping)
        width = max(len(row.ours) for row in listed)
        names = max(len(row.foreign) for row in listed)
        for row in listed:
            show(f"{row.ours:{width}}  <->  {row.foreign:{names}}  {row.shape}")
    report(done.faults, {})
    if done.faults:
        return BAD_INPUT
    say(f"{done.tensors} tensors, {done.size:,} bytes: each comes back bit for bit")
    return SUCCESS
