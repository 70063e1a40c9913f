"""`fllmc explain`: the page of a diagnostic code."""

from __future__ import annotations

import click

from fllmc.cli.exits import BAD_INPUT
from fllmc.cli.group import Command
from fllmc.cli.options import json_option


@click.command(cls=Command, name="explain", short_help="Explain a diagnostic code.")
@click.argument("code", required=False)
@json_option
def command(code: str | None, as_json: bool) -> int | None:
    """Print the page of the diagnostic CODE, such as E0201; without one, list all codes."""
    from fllmc.cli.catalogue import every_code, page_of
    from fllmc.cli.output import complain, show, show_json
    from fllmc.ir.diagnostics import did_you_mean, explanation

    codes = every_code()
    if code is None:
        if as_json:
            pages = {each: explanation(kind) for each, kind in codes.items()}
            show_json("fllmc.codes/1", {"codes": pages})
        else:
            for each, kind in codes.items():
                show(f"{each}  {explanation(kind).partition(chr(10))[0]}")
        return None
    kind = codes.get(code.upper())
    if kind is None:
        complain(f"error: there is no code {code}")
        for line in did_you_mean(code.upper(), codes):
            complain(f" = help: {line}")
        return BAD_INPUT
    if as_json:
        document = {"code": kind.code, "explanation": explanation(kind)}
        show_json("fllmc.explain/1", {**document, "page": page_of(kind)})
    else:
        show(page_of(kind).rstrip("\n"))
    return None
