"""`fllmc fix`: the fixes of diagnostics applied, each kept only if fewer mistakes are left."""

from __future__ import annotations

from pathlib import Path

import click

from fllmc.cli.exits import BAD_INPUT, SUCCESS
from fllmc.cli.failures import failed
from fllmc.cli.group import Command


@click.command(cls=Command, name="fix", short_help="Put right what is surely meant otherwise.")
@click.argument("files", metavar="FILE...", nargs=-1, required=True)
@click.option("--diff", is_flag=True, help="Write nothing; print what would change.")
def command(files: tuple[str, ...], diff: bool) -> int:
    """Apply the fixes of what `fllmc check` finds in each FILE, in place.

    After each fix the spec is checked again, and the fix is kept only if fewer mistakes are left.
    What is left is reported, as by `check`.

    \b
    fllmc fix my_model.fllm
    fllmc fix my_model.fllm --diff
    """
    from fllmc.ir.diagnostics import DiagnosticError

    status = SUCCESS
    for file in files:
        try:
            status = max(status, one(file, diff))
        except DiagnosticError as error:
            status = max(status, failed(error))
    return status


def one(file: str, dry: bool) -> int:
    """Fix one file; the status that `check` then has."""
    from fllmc.cli.fmt_command import difference
    from fllmc.cli.output import report, say, show, summary
    from fllmc.frontend.fixes import fixed
    from fllmc.frontend.source import read_source

    text = read_source(file).text
    result = fixed(file, text)
    for step in result.applied:
        say(f"{step.found.span}: {step.found.code}: {step.fix.title}")
    if result.text != text:
        if dry:
            show(difference(text, result.text, file))
        else:
            write(file, result.text)
    report(result.left, result.sources)
    say(f"{file}: {len(result.applied)} fixed, {summary(result.left)} left")
    return BAD_INPUT if any(each.severity == "error" for each in result.left) else SUCCESS


def write(file: str, text: str) -> None:
    """Write the file anew; DiagnosticError if that can't be done."""
    from fllmc.cli.errors import NotWritable
    from fllmc.ir.diagnostics import DiagnosticError
    from fllmc.ir.span import NOWHERE

    try:
        Path(file).write_text(text, encoding="utf-8")
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(NotWritable(NOWHERE, file, reason)) from error
