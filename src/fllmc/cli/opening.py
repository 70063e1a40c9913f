"""What a command is given to work on: an artifact's folder, or a spec that is compiled first."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import msgspec

from fllmc import __version__
from fllmc.cli.output import report, say
from fllmc.codegen.artifact import read_artifact, write_artifact
from fllmc.ir.plan import Plan


class Opened(msgspec.Struct, frozen=True):
    """A plan with its code and the texts of its levels. `folder` is the artifact's, if it is one;
    `sources` are the texts of the spec by file."""

    name: str
    plan: Plan
    source: str
    levels: Mapping[str, str]
    sources: tuple[tuple[str, str], ...]
    folder: Path | None = None
    later: tuple[str, ...] = ()


def opened(
    path: str,
    mesh: str = "",
    sets: Mapping[str, str] | None = None,
    tell: Callable[[str], None] = say,
) -> Opened:
    """The artifact in a folder, or the spec compiled. DiagnosticError when there is neither.

    `tell` is given the line that says how the mesh was read.
    """
    folder = Path(path)
    if folder.is_dir() or folder.suffix == ".fllmx":
        if mesh or sets:
            raise click.UsageError(f"{path} is compiled already: --mesh and --set are for specs")
        found = artifact(folder)
        tell(f"mesh {found.plan.mesh_read}")
        return found
    from fllmc.driver import compile_spec

    compiled = compile_spec(path, mesh, sets, tell=lambda reading: tell(f"mesh {reading}"))
    spec = compiled.spec
    report(compiled.warnings, dict(spec.sources))
    levels = dict(compiled.levels)
    return Opened(
        spec.name, compiled.plan, compiled.source, levels, spec.sources, later=compiled.later
    )


@contextmanager
def folder_of(found: Opened) -> Generator[Path]:
    """The artifact's folder; of a spec that was compiled, one that is gone afterwards."""
    if found.folder is not None:
        yield found.folder
        return
    with TemporaryDirectory(prefix="fllmc-") as name:
        folder = Path(name) / "plan.fllmx"
        levels = tuple(found.levels.items())
        write_artifact(folder, found.name, found.plan, found.sources, levels, __version__)
        yield folder


def artifact(folder: Path) -> Opened:
    """The artifact in a folder, checked against its plan."""
    found = read_artifact(folder)
    levels = {
        level: (folder / "levels" / f"{level}.fir").read_text(encoding="utf-8")
        for level in found.manifest.levels
    }
    sources = found.manifest.sources
    return Opened(found.name, found.plan, found.source, levels, sources, folder, found.later)
