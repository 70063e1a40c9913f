"""The artifact: a folder `NAME.fllmx/` with manifest, plan, generated schedule and report.

The plan is data, and the code follows from it: reading an artifact regenerates the code and refuses
a folder whose text differs, so nothing runs that this version would not have written. Writing the
same plan twice gives the same bytes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec

from fllmc.codegen.errors import ArtifactChanged, ArtifactMissing, ArtifactUnreadable
from fllmc.codegen.report import report_html
from fllmc.codegen.schedule import schedule_text
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.plan import SCHEMA, Plan
from fllmc.ir.span import NOWHERE

PLAN = "plan.json"
SCHEDULE = "schedule/step.py"
MANIFEST = "manifest.json"
REPORT = "report.html"
T = TypeVar("T")
MAX_PLAN_BYTES = 256 << 20
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
    source = schedule_text(plan)
    files = {
        PLAN: plan_bytes(plan),
        SCHEDULE: source.encode(),
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
    return Artifact(name, plan, source, manifest)


def replace_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write the files to a new folder beside and put it in place of the old one."""
    if folder.exists() and not (folder / MANIFEST).is_file():
        if not folder.is_dir() or any(folder.iterdir()):
            raise DiagnosticError(
                ArtifactUnreadable(NOWHERE, str(folder), "is no artifact to replace")
            )
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
    """The artifact in a folder. DiagnosticError when it is missing, unreadable or changed."""
    if not (folder / MANIFEST).is_file():
        raise DiagnosticError(ArtifactMissing(NOWHERE, str(folder), MANIFEST))
    manifest = decoded(folder, MANIFEST, Manifest)
    plan = decoded(folder, PLAN, Plan)
    if manifest.schema != SCHEMA or plan.schema != SCHEMA:
        reason = f"has schema {manifest.schema}, this version reads {SCHEMA}"
        raise DiagnosticError(ArtifactUnreadable(NOWHERE, str(folder), reason))
    try:
        source = schedule_text(plan)
    except Exception as error:
        reason = f"holds a plan that no schedule follows from ({type(error).__name__})"
        raise DiagnosticError(ArtifactUnreadable(NOWHERE, str(folder / PLAN), reason)) from error
    expected = {**manifest.files, SCHEDULE: sha256(source.encode()), PLAN: manifest.plan_sha256}
    for path, wanted in expected.items():
        if path_bytes(folder, path) is None:
            raise DiagnosticError(ArtifactMissing(NOWHERE, str(folder), path))
        if sha256(path_bytes(folder, path) or b"") != wanted:
            raise DiagnosticError(ArtifactChanged(NOWHERE, str(folder / path)))
    return Artifact(manifest.name, plan, source, manifest)


def path_bytes(folder: Path, path: str) -> bytes | None:
    """A file of the artifact; None when it is not there or lies outside the folder."""
    target = folder / path
    inside = target.resolve().is_relative_to(folder.resolve())
    return target.read_bytes() if inside and target.is_file() else None


def decoded(folder: Path, path: str, kind: type[T]) -> T:
    """A JSON file of the artifact as a value of that type."""
    data = path_bytes(folder, path)
    if data is None:
        raise DiagnosticError(ArtifactMissing(NOWHERE, str(folder), path))
    if len(data) > MAX_PLAN_BYTES:
        raise DiagnosticError(ArtifactUnreadable(NOWHERE, str(folder / path), "is too large"))
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise DiagnosticError(
            ArtifactUnreadable(NOWHERE, str(folder / path), str(error))
        ) from error
