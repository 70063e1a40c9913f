"""What commands print: results on stdout, everything else on stderr, colour only for people."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TextIO

import click

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.render import Paint, ordered, render, to_json


def say(text: str) -> None:
    """A line of progress or advice, on stderr, where no program reads the diagnostics there."""
    if setting("format") in (None, "text"):
        complain(text)


def complain(text: str) -> None:
    """A line on stderr, whoever reads it."""
    click.echo(text, err=True, color=True)


def show(text: str) -> None:
    """A result, on stdout."""
    click.echo(text, color=True)


def show_json(schema: str, document: Mapping[str, Any]) -> None:
    """A result as one JSON document with the name of its schema, `fllmc.compile/1`."""
    import msgspec

    encoded = msgspec.json.encode({"schema": schema, **document})
    show(msgspec.json.format(encoded, indent=2).decode())


def setting(name: str) -> object:
    """The value of an option that every command has; None outside a command."""
    context = click.get_current_context(silent=True)
    return context.meta.get(f"fllmc.{name}") if context else None


def wants_color(stream: TextIO) -> bool:
    """Whether to colour what goes to the stream: --color, then NO_COLOR, then a terminal."""
    choice = setting("color")
    if choice in ("always", "never"):
        return choice == "always"
    environment = os.environ
    if environment.get("NO_COLOR") or environment.get("TERM") == "dumb":
        return False
    return bool(environment.get("FORCE_COLOR")) or stream.isatty()


def paint(stream: TextIO | None = None) -> Paint:
    """Colours for a stream, stdout if none is given."""
    return Paint(wants_color(stream or sys.stdout))


def report(diagnostics: Sequence[Diagnostic], sources: Mapping[str, str] | None = None) -> None:
    """Diagnostics on stderr, in the form that `--format` says.

    Text, or one JSON object a line; SARIF is one document for all, written when the command ends.
    """
    if not diagnostics:
        return
    texts = dict(sources or {})
    texts |= {file: text for file, text in read_files(diagnostics) if file not in texts}
    form = setting("format")
    if form == "json":
        for found in ordered(diagnostics):
            complain(json.dumps(as_data(found, texts)))
    elif form == "sarif":
        from fllmc.cli.sarif import keep

        keep(click.get_current_context(), diagnostics, texts)
    else:
        complain(render(diagnostics, texts, wants_color(sys.stderr)).rstrip("\n"))


def as_data(found: Diagnostic, sources: Mapping[str, str]) -> dict[str, Any]:
    """A diagnostic as data, with the fixes that apply to its source."""
    from fllmc.frontend.fixes import fixes_of

    return to_json(found, fixes_of(found, sources.get(found.span.file, "")))


def read_files(diagnostics: Iterable[Diagnostic]) -> Iterable[tuple[str, str]]:
    """The texts of the files in which diagnostics have their places, where they can be read."""
    from fllmc.frontend.library import read

    spans = [s for d in diagnostics for s in (d.span, *(label.span for label in d.secondary()))]
    for file in sorted({span.file for span in spans if span.file}):
        try:
            yield file, read(file)
        except DiagnosticError:
            continue


def summary(diagnostics: Sequence[Diagnostic]) -> str:
    """`2 errors, 1 warning`."""
    counts = [
        (sum(found.severity == kind for found in ordered(diagnostics)), kind)
        for kind in ("error", "warning")
    ]
    return ", ".join(f"{n} {kind}{'s' * (n > 1)}" for n, kind in counts if n) or "no errors"
