"""`fllmc fmt`: the one way to write a spec."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from fllmc.cli.exits import BAD_INPUT, SUCCESS
from fllmc.cli.failures import failed
from fllmc.cli.group import Command


@click.command(cls=Command, name="fmt", short_help="Lay out specs in the one canonical form.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if a file would change.")
@click.option("--diff", is_flag=True, help="Write nothing; print what would change.")
def command(files: tuple[str, ...], check: bool, diff: bool) -> int:
    """Lay out each FILE anew, in place; `-` reads stdin and prints the result.

    Formatting keeps every token and every comment, and formatting twice changes nothing more. A
    file with syntax errors is left alone.
    """
    from fllmc.ir.diagnostics import DiagnosticError

    status = SUCCESS
    for file in files:
        try:
            changed = one(file, check or diff, diff)
        except DiagnosticError as error:
            status = max(status, failed(error))
            continue
        if changed and check:
            status = max(status, BAD_INPUT)
    return status


def one(file: str, dry: bool, diff: bool) -> bool:
    """Format one file; whether it changed, or would."""
    from fllmc.cli.output import say, show
    from fllmc.frontend.format import format_source
    from fllmc.frontend.source import read_source

    if file == "-":
        text, name = sys.stdin.read(), "<stdin>"
    else:
        text, name = read_source(file).text, file
    formatted = format_source(text, name)
    changed = formatted != text
    if diff and changed:
        show(difference(text, formatted, name))
    elif file == "-" and not dry:
        click.echo(formatted, nl=False)
    elif changed:
        if not dry:
            Path(file).write_text(formatted, encoding="utf-8")
        say(f"{name}: {'would change' if dry else 'formatted'}")
    return changed


def difference(before: str, after: str, name: str) -> str:
    """A unified diff."""
    from difflib import unified_diff

    lines = unified_diff(before.splitlines(), after.splitlines(), name, name, lineterm="")
    return "\n".join(lines)
