"""`fllmc opt`: passes one by one, on the text form of programs."""

from __future__ import annotations

import sys
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from fllmc.cli.failures import sourced
from fllmc.cli.group import Command
from fllmc.cli.options import mesh_option

if TYPE_CHECKING:
    from fllmc.ir.diagnostics import Diagnostic
    from fllmc.ir.program import Program

PIPELINE = "--passes"
"""The file in which places of the pipeline's text are."""


@click.command(cls=Command, name="opt")
@click.argument("file", metavar="FILE.fir|SPEC")
@click.option("--passes", default="", help="Passes with commas between; options in braces.")
@mesh_option
@click.option("-v", "--verbose", is_flag=True, help="The time of every pass.")
def command(file: str, passes: str, mesh: str, verbose: bool) -> None:
    """Run passes on a program in text form and print the program that results.

    FILE is a program as `inspect --level` and `compile --dump-ir` write it, or - for stdin. Of a
    spec, the typed model is taken. Every pass's result is verified.

    \b
    fllmc opt quickstart --passes inline,share-equal
    fllmc opt --passes 'recompute{cheap=false}' 06-optimizer-step.fir
    """
    from fllmc.cli.output import report, say, show
    from fllmc.ir.quantities import seconds_text
    from fllmc.ir.text import print_program
    from fllmc.passes.base import Context
    from fllmc.passes.pipeline import parse_pipeline
    from fllmc.passes.runner import run_pipeline

    with sourced({PIPELINE: passes}):
        steps = parse_pipeline(passes, PIPELINE)
    program, texts = read_program(file)
    found: list[Diagnostic] = []
    with sourced(texts):
        chosen = program.mesh
        if mesh:
            from fllmc.frontend.mesh import parse_mesh

            chosen, reading = parse_mesh(mesh, program.mesh)
            say(f"mesh {reading}")
        cx = Context(mesh=chosen, report=found.append)
        program, timings = run_pipeline(program, steps, cx, perf_counter)
    report(found, texts)
    if verbose:
        for each in timings:
            say(f"{each.name:<16} {seconds_text(each.seconds)}")
    show(print_program(program).rstrip("\n"))


def read_program(file: str) -> tuple[Program, dict[str, str]]:
    """The program in a file, or the model of a spec; with the texts that its places are in."""
    from fllmc.frontend import load_spec
    from fllmc.frontend.source import read_source
    from fllmc.ir.text import load_program

    if file != "-" and Path(file).suffix != ".fir":
        spec, _ = load_spec(file)
        return spec.program, dict(spec.sources)
    text = sys.stdin.read() if file == "-" else read_source(file).text
    name = "<stdin>" if file == "-" else file
    with sourced({name: text}):
        return load_program(text, name), {name: text}
