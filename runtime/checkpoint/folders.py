"""The folder of a run's checkpoints: which are committed, which is the newest, which go.

A checkpoint is committed when it has its final name, `step-00000100`; until then the name ends in
`.tmp`. A step saved again (after a resume from before it) is `step-00000100.r1`, and counts as
newer: no committed folder is ever written to.
"""

from __future__ import annotations

import re
import secrets
import shutil
from pathlib import Path

import msgspec

from fllmc.runtime.checkpoint import manifest
from fllmc.runtime.checkpoint.files import sync_folder

_COMMITTED = re.compile(r"step-(\d{8,})(?:\.r(\d+))?")
_PARTIAL = ".tmp"


class Committed(msgspec.Struct, frozen=True, order=True):
    """A committed checkpoint; later ones compare greater."""

    step: int
    revision: int
    path: Path


def committed(folder: Path) -> list[Committed]:
    """The committed checkpoints of a folder, oldest first; none where it doesn't exist."""
    if not folder.is_dir():
        return []
    found: list[Committed] = []
    for path in folder.iterdir():
        match = _COMMITTED.fullmatch(path.name)
        if match and (path / manifest.NAME).is_file():
            found.append(Committed(int(match[1]), int(match[2] or 0), path))
    return sorted(found)


def find_latest(folder: Path) -> Path | None:
    """The newest committed checkpoint, unverified, or None."""
    found = committed(folder)
    return found[-1].path if found else None


def free_name(folder: Path, step: int) -> str:
    """The name under which `step` is to be committed: one that no entry has."""
    base = f"step-{step:08d}"
    name, revision = base, 0
    while (folder / name).exists():
        revision += 1
        name = f"{base}.r{revision}"
    return name


def open_partial(folder: Path, name: str) -> Path:
    """A new, empty folder to write to. What interrupted saves and removals left is cleared.

    Its name has a random part, so that a writer of an earlier save that is still alive writes to
    a folder which no longer exists, never into this one.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True)
        sync_folder(folder.parent)
    for stale in folder.glob(f"step-*{_PARTIAL}"):
        shutil.rmtree(stale, ignore_errors=True)
    partial = folder / f"{name}.{secrets.token_hex(4)}{_PARTIAL}"
    partial.mkdir()
    return partial


def commit(partial: Path, target: Path) -> None:
    """Give a wholly written folder its name, durably: a checkpoint exists from here on."""
    sync_folder(partial)
    partial.rename(target)
    sync_folder(target.parent)


def prune(folder: Path, keep: int) -> list[Path]:
    """Remove all but the newest `keep` committed checkpoints (at least one); the paths removed."""
    gone = committed(folder)[: -max(1, keep)]
    for old in gone:
        remove(old.path)
    return [old.path for old in gone]


def discard_after(folder: Path, step: int) -> list[Path]:
    """Remove the checkpoints past `step`: they belong to a course of the run that is given up."""
    gone = [entry for entry in committed(folder) if entry.step > step]
    for entry in reversed(gone):
        remove(entry.path)
    return [entry.path for entry in gone]


def remove(path: Path) -> None:
    """Remove a checkpoint; at no instant is a part of it left under a committed name."""
    doomed = path.with_name(f"{path.name}.gone{_PARTIAL}")
    shutil.rmtree(doomed, ignore_errors=True)
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)
