"""`fllmc check`: everything that is wrong with a spec, without compiling it."""

from __future__ import annotations

import click

from fllmc.cli.exits import SUCCESS, exit_status
from fllmc.cli.group import Command
from fllmc.cli.options import json_option, overrides, set_option


@click.command(cls=Command, name="check", short_help="Report what is wrong with a spec.")
@click.argument("specs", metavar="SPEC...", nargs=-1, required=True)
@set_option
@json_option
def command(specs: tuple[str, ...], sets: tuple[str, ...], as_json: bool) -> int:
    """Report what is wrong with each SPEC: a path, or the name of one that ships.

    All mistakes of a file are reported together, each with its place, its reason and, where there
    is one, a way out. A spec without a `train` section is checked as a library.

    \b
    fllmc check my_model.fllm
    fllmc check quickstart --set dims.layers=12
    """
    from fllmc.cli.output import as_data, report, say, show_json, summary
    from fllmc.frontend import load
    from fllmc.ir.render import ordered

    status = SUCCESS
    documents: list[object] = []
    for path in specs:
        _, found, sources = load(path, overrides(sets), needs_run=False)
        errors = [each for each in found if each.severity == "error"]
        status = max(status, exit_status(errors) if errors else SUCCESS)
        listed = [as_data(each, sources) for each in ordered(found)]
        documents.append({"spec": path, "ok": not errors, "diagnostics": listed})
        if not as_json:
            report(found, sources)
            say(f"{path}: {summary(found)}")
    if as_json:
        show_json("fllmc.check/1", {"specs": documents})
    return status
