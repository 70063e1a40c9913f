"""`fllmc compile`: from a spec to an artifact, with what was decided."""

from __future__ import annotations

from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

import click

from fllmc.cli.exits import INFEASIBLE, SUCCESS
from fllmc.cli.group import Command
from fllmc.cli.options import json_option, mesh_option, overrides, set_option, target_option

if TYPE_CHECKING:
    from fllmc.driver import Compiled
    from fllmc.ir.diagnostics import Diagnostic
    from fllmc.ir.program import Program
    from fllmc.passes.runner import Timing


@click.command(cls=Command, name="compile")
@click.argument("spec", metavar="SPEC")
@mesh_option
@target_option
@set_option
@click.option("-o", "--output", metavar="OUT", help="Folder to write; else NAME.fllmx.")
@click.option("-n", "--dry-run", is_flag=True, help="Write no artifact.")
@click.option("--dump-ir", metavar="DIR", help="Write the program after every pass to DIR.")
@click.option("--dump-after", metavar="PASS", help="With --dump-ir: only after this pass.")
@click.option("-v", "--verbose", is_flag=True, help="The time of every pass.")
@json_option
def command(
    spec: str,
    mesh: str,
    target: str,
    sets: tuple[str, ...],
    output: str | None,
    dry_run: bool,
    dump_ir: str | None,
    dump_after: str | None,
    verbose: bool,
    as_json: bool,
) -> int:
    """Compile SPEC for a mesh: a path, or the name of a spec that ships.

    Writes the folder NAME.fllmx with the plan, the generated schedule and report.html, and prints
    what a rank holds and moves. Exits with 3 when the plan does not fit the memory of the --target;
    then nothing is written.

    \b
    fllmc compile llama3_8b --mesh 8x4 --target h100
    fllmc compile my_model.fllm --set dims.layers=2 -o two_layers.fllmx
    """
    from fllmc.cli.output import report, say
    from fllmc.cli.summary import fits
    from fllmc.driver import compile_spec

    if dump_after and not dump_ir:
        raise click.UsageError("--dump-after needs --dump-ir DIR")
    watch = Watch(dump_ir, dump_after)
    compiled = compile_spec(
        spec, mesh, overrides(sets), target, perf_counter, watch, lambda read: say(f"mesh {read}")
    )
    for line in watch.lines(compiled.timings, verbose):
        say(line)
    report(compiled.warnings, dict(compiled.spec.sources))
    good = fits(compiled.plan)
    folder = Path(output or f"{compiled.spec.name}.fllmx")
    written = None if dry_run or (target and not good) else folder
    if written:
        write(written, compiled)
    if as_json:
        tell_data(compiled, watch, written)
    else:
        tell(compiled, written)
    if not good:
        report([too_large(bool(target), spec, mesh, sets, compiled)])
    return SUCCESS if good or not target else INFEASIBLE


def tell(compiled: Compiled, written: Path | None) -> None:
    """Print the plan's figures, and where it is."""
    from fllmc.cli.output import paint, say, show
    from fllmc.cli.summary import summary_lines

    for line in summary_lines(compiled.spec.name, compiled.plan, paint()):
        show(line)
    if written:
        show(f"wrote {written}, with {written / 'report.html'}")
        say(f"next: fllmc inspect {written} --memory, fllmc run {written}")


def tell_data(compiled: Compiled, watch: Watch, written: Path | None) -> None:
    """Print the same as data."""
    from fllmc.cli.output import show_json
    from fllmc.cli.summary import summary_data

    seconds = {step: round(took, 4) for step, took in watch.groups(compiled.timings)}
    figures = summary_data(compiled.spec.name, compiled.plan)
    at = str(written) if written else None
    show_json("fllmc.compile/1", {**figures, "artifact": at, "seconds": seconds})


def write(folder: Path, compiled: Compiled) -> None:
    """Write the artifact."""
    from fllmc import __version__
    from fllmc.cli.errors import NotWritable
    from fllmc.codegen.artifact import write_artifact
    from fllmc.ir.diagnostics import DiagnosticError
    from fllmc.ir.span import NOWHERE

    spec = compiled.spec
    try:
        write_artifact(folder, spec.name, compiled.plan, spec.sources, compiled.levels, __version__)
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(NotWritable(NOWHERE, str(folder), reason)) from error


def too_large(
    named: bool, spec: str, mesh: str, sets: tuple[str, ...], compiled: Compiled
) -> Diagnostic:
    """The diagnostic of a plan that does not fit: an error if the target was named."""
    from fllmc.cli.errors import DoesNotFit, FitsNothing
    from fllmc.cli.summary import memory_rows
    from fllmc.ir.quantities import bytes_text
    from fllmc.ir.span import NOWHERE

    plan = compiled.plan.fullest
    chosen = [f"--mesh {mesh}"] * bool(mesh) + [f"--set {text}" for text in sets]
    return (DoesNotFit if named else FitsNothing)(
        NOWHERE,
        name=compiled.spec.name,
        needed=bytes_text(plan.arena_bytes),
        target=plan.target.name,
        available=bytes_text(plan.target.memory_bytes),
        parts=", ".join(f"{words} {bytes_text(size)}" for words, size in memory_rows(plan)),
        inspect=" ".join(["fllmc inspect", spec, *chosen, "--memory"]),
    )


class Watch:
    """Sees the program after each pass: writes it down where asked, and tells times by level."""

    def __init__(self, folder: str | None, only: str | None) -> None:
        self.folder = Path(folder) if folder else None
        self.only = only
        self.levels: list[str] = []

    def __call__(self, number: int, name: str, program: Program) -> None:
        """One pass's result; number 0 is the pipeline's input."""
        if number:
            self.levels.append(program.level)
        if self.folder is None or (self.only and name != self.only):
            return
        from fllmc.ir.text import print_program

        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{number:02}-{name}.fir"
        path.write_text(print_program(program), encoding="utf-8")

    def groups(self, timings: tuple[Timing, ...]) -> list[tuple[str, float]]:
        """Seconds by phase: reading, the passes to each level, planning."""
        read, *passes, planned = timings
        found = {read.name: read.seconds}
        for level, each in zip(self.levels, passes, strict=True):
            found[level] = found.get(level, 0.0) + each.seconds + each.verify_seconds
        found[planned.name] = planned.seconds
        return list(found.items())

    def lines(self, timings: tuple[Timing, ...], verbose: bool) -> list[str]:
        """What is said of the phases."""
        from fllmc.ir.quantities import seconds_text

        shown = [f"{name} {seconds_text(took)}" for name, took in self.groups(timings)]
        lines = [" · ".join(shown)]
        if verbose:
            _, *passes, _ = timings
            lines += [
                f"  {each.name:<16} {level:<9} {seconds_text(each.seconds):>8}"
                f"   verified in {seconds_text(each.verify_seconds)}"
                for level, each in zip(self.levels, passes, strict=True)
            ]
        return lines
