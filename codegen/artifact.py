"""The artifact: a folder `NAME.fllmx/` with manifest, plan, generated schedule and report.

The plan is data, and the code follows from it: reading an artifact regenerates the code and refuses
a folder whose text differs, so nothing runs that this version would not have written. Writing the
same plan twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from fllmc.codegen.errors import (
    ArtifactChanged,
    ArtifactMissing,
    ArtifactStranger,
    ArtifactUnreadable,
)
from fllmc.codegen.make_plan import follows
from fllmc.codegen.report import report_html
from fllmc.codegen.schedule import schedule_text
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import SCHEMA, Plan
from fllmc.ir.program import LEVELS
from fllmc.ir.span import NOWHERE
from fllmc.ir.verify import verify

PLAN = "plan.json"
SCHEDULE = "schedule/step.py"
MANIFEST = "manifest.json"
REPORT = "report.html"
T = TypeVar("T")
MAX_FILE_BYTES = 256 << 20
"""A plan is a few hundred KiB; anything near this is not one of ours."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an artifact is made of. `sources` are the spec's files with their texts."""

    schema: str
    version: str
    name: str
    mesh: str
    mesh_read: str
    target: str
    plan_sha256: str
    files: dict[str, str]
    sources: tuple[tuple[str, str], ...]
    levels: tuple[str, ...] = ()


class Artifact(msgspec.Struct, frozen=True):
    """A plan with its generated code, checked against each other."""

    name: str
    plan: Plan
    source: str
    manifest: Manifest
    later: tuple[str, ...] = ()
    """The schedules of the later parts of a run in stages."""


def schedules(count: int) -> list[str]:
    """The files of the schedules of so many parts of a run."""
    return [SCHEDULE, *(f"schedule/step_{number}.py" for number in range(2, count + 1))]


def sha256(data: bytes) -> str:
    """The hash in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def plan_bytes(plan: Plan) -> bytes:
    """The plan as it lies in the folder."""
    return msgspec.json.format(msgspec.json.encode(plan), indent=1) + b"\n"


def write_artifact(
    folder: Path,
    name: str,
    plan: Plan,
    sources: tuple[tuple[str, str], ...],
    levels: tuple[tuple[str, str], ...],
    version: str,
) -> Artifact:
    """Write the folder, replacing an artifact that was there; a folder of other things is refused.

    `levels` are the program's texts at each level, for people and for `inspect`.
    """
    sources_by_part = [schedule_text(part) for part in plan.parts]
    source, *later = sources_by_part
    files = {
        PLAN: plan_bytes(plan),
        **dict(zip(schedules(len(plan.parts)), map(str.encode, sources_by_part), strict=True)),
        **{f"levels/{level}.fir": text.encode() for level, text in levels},
        REPORT: report_html(name, plan, dict(levels)).encode(),
    }
    manifest = Manifest(
        schema=SCHEMA,
        version=version,
        name=name,
        mesh=str(plan.program.mesh),
        mesh_read=plan.mesh_read,
        target=plan.target.name,
        plan_sha256=sha256(files[PLAN]),
        files={path: sha256(data) for path, data in sorted(files.items())},
        sources=sources,
        levels=tuple(level for level, _ in levels),
    )
    files[MANIFEST] = msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n"
    replace_folder(folder, files)
    return Artifact(name, plan, source, manifest, tuple(later))


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files to a new folder beside and put it in place of the old one.

    DiagnosticError where something that is no artifact would be replaced.
    """
    foreign = folder.exists() and not (folder / MANIFEST).is_file()
    if foreign and (not folder.is_dir() or any(folder.iterdir())):
        raise DiagnosticError(ArtifactUnreadable(NOWHERE, str(folder), "is no artifact to replace"))
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    for path, data in files.items():
        target = fresh / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    if folder.exists():
        shutil.rmtree(folder)
    fresh.rename(folder)


def read_artifact(folder: Path) -> Artifact:
    """The artifact in a folder; nothing in it is executed.

    DiagnosticError when a file is missing, unreadable, changed, or none of the artifact's.
    """
    manifest = decoded(folder, MANIFEST, Manifest)
    if manifest.schema != SCHEMA:
        reason = f"has schema {manifest.schema}, this version reads {SCHEMA}"
        raise unreadable(folder, reason)
    levels = [f"levels/{level}.fir" for level in manifest.levels if level in LEVELS]
    parts = sum(path.startswith("schedule/") for path in manifest.files)
    expected = {PLAN, *schedules(parts), REPORT, *levels}
    if set(manifest.files) != expected or len(levels) != len(manifest.levels):
        raise unreadable(folder / MANIFEST, "does not list an artifact's files")
    for path in files_in(folder):
        if path not in expected | {MANIFEST}:
            raise DiagnosticError(ArtifactStranger(NOWHERE, str(folder / path)))
    for path in sorted(expected):
        if sha256(file_bytes(folder, path)) != manifest.files[path]:
            raise DiagnosticError(ArtifactChanged(NOWHERE, str(folder / path)))
    plan = decoded(folder, PLAN, Plan)
    if plan_bytes(plan) != file_bytes(folder, PLAN):
        raise unreadable(folder / PLAN, "is not written as this version writes it")
    if len(plan.parts) != parts or any(part.later for part in plan.later):
        raise unreadable(folder / PLAN, "has not the parts that the manifest lists")
    found = [checked_source(folder, part) for part in plan.parts]
    for path, source in zip(schedules(parts), found, strict=True):
        if file_bytes(folder, path) != source.encode():
            raise DiagnosticError(ArtifactChanged(NOWHERE, str(folder / path)))
    return Artifact(manifest.name, plan, found[0], manifest, tuple(found[1:]))


def checked_source(folder: Path, plan: Plan) -> str:
    """The schedule that follows from a plan, once the plan is one that this version would make."""
    try:
        for stage in plan.by_stage:
            verify(stage.program)
        sound = plan.schema == SCHEMA and follows(plan)
        source = schedule_text(plan) if sound else ""
    except Exception as error:  # whatever a stranger's plan runs into
        reason = f"holds a plan that no schedule follows from ({type(error).__name__})"
        raise unreadable(folder / PLAN, reason) from error
    if not sound:
        raise unreadable(folder / PLAN, "is no plan that this version would make of its program")
    return source


def unreadable(path: Path, reason: str) -> DiagnosticError:
    """The error for a file that this version does not write."""
    return DiagnosticError(ArtifactUnreadable(NOWHERE, str(path), reason))


def files_in(folder: Path) -> list[str]:
    """What lies in the folder, sorted: files by their path below it, and links, not followed."""
    try:
        found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    except OSError as error:
        raise unreadable(folder, f"can't be read: {error.strerror}") from error
    return sorted(path.relative_to(folder).as_posix() for path in found)


def file_bytes(folder: Path, path: str) -> bytes:
    """A file of the artifact. DiagnosticError if it is missing, linked elsewhere or too large."""
    target = folder / path
    try:
        if not target.resolve().is_relative_to(folder.resolve()):
            raise unreadable(target, "is a link out of the folder")
        if target.stat().st_size > MAX_FILE_BYTES:
            raise unreadable(target, "is too large")
        return target.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DiagnosticError(ArtifactMissing(NOWHERE, str(folder), path)) from error
    except (OSError, RuntimeError) as error:  # RuntimeError: links that lead in a circle
        reason = error.strerror if isinstance(error, OSError) else "links in a circle"
        raise unreadable(target, f"can't be read: {reason}") from error


def decoded(folder: Path, path: str, kind: type[T]) -> T:
    """A JSON file of the artifact as a value of that type."""
    data = file_bytes(folder, path)
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise unreadable(folder / path, f"is not what this version writes: {error}") from error
