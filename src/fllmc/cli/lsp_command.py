"""`fllmc lsp`: the language server."""

from __future__ import annotations

import click

from fllmc.cli.exits import ENVIRONMENT, SUCCESS
from fllmc.cli.group import Command


@click.command(cls=Command, name="lsp", short_help="Serve an editor on stdin and stdout.")
def command() -> int:
    """Serve an editor by the Language Server Protocol on stdin and stdout.

    Diagnostics as you type, hover with types, shapes and bytes, go to definition, rename,
    completion, formatting and quick fixes. Needs the extra: pip install 'fllmc[lsp]'.
    """
    try:
        from fllmc.editor.server import server
    except ModuleNotFoundError as missing:
        from fllmc.cli.output import complain

        complain(f"error: `fllmc lsp` needs the package `{missing.name}`, which is not installed")
        complain(" = help: pip install 'fllmc[lsp]'")
        return ENVIRONMENT
    server().start_io()
    return SUCCESS
