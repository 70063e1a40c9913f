"""Opening a checkpoint, proving it whole, and reading any slice of it on any mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

import msgspec
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError, InternalError
from fllmc.ir.span import NOWHERE
from fllmc.runtime import errors
from fllmc.runtime.checkpoint import folders, manifest
from fllmc.runtime.checkpoint.boxes import Box, Shape, box_of, cover_fault
from fllmc.runtime.checkpoint.changes import Changes, HeldRows, changes, converts
from fllmc.runtime.checkpoint.coded import cut_dim, dequantized, names_of
from fllmc.runtime.checkpoint.files import (
    DTYPE_NAMES,
    STORED_DTYPES,
    TORCH_DTYPES,
    hash_file,
)
from fllmc.runtime.checkpoint.manifest import Manifest, Piece, describe

Expected: TypeAlias = Mapping[str, tuple[str, Shape]]
"""The dtype and whole shape that a plan has for each tensor."""


class Checkpoint:
    """An open checkpoint. Files are mapped, so a slice reads only its own bytes."""

    def __init__(self, path: Path, content: Manifest) -> None:
        self.path, self.manifest = path, content
        self._files: dict[str, Any] = {}

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unmap the files."""
        self._files.clear()

    @property
    def position(self) -> manifest.Position:
        """Where the run stood."""
        return self.manifest.position

    def names(self) -> list[str]:
        """The tensors' names, sorted."""
        return sorted(self.manifest.tensors)

    def changes(self, expected: Expected, rows: HeldRows | None = None) -> Changes:
        """In what the stored tensors differ from those of a plan and can be read as it wants.

        `rows` are those that the plan holds of tensors whose rows train in part.
        """
        return changes(self.manifest.tensors, expected, rows or {})

    def faults(self, expected: Expected) -> list[Diagnostic]:
        """Everything in which the stored tensors differ from those of a plan, less `changes`."""
        stored, allowed = self.manifest.tensors, self.changes(expected)
        place = self.path.name
        extra = sorted(stored.keys() - expected.keys() - allowed.used_up)
        settled = allowed.settled
        found: list[Diagnostic] = []
        for name, (dtype, shape) in sorted(expected.items()):
            if name in settled:
                continue
            if name not in stored:
                found.append(errors.TensorMissing(NOWHERE, place, name, tuple(extra)))
            elif (stored[name].dtype, stored[name].shape) != (dtype, shape):
                kinds = stored[name].kind(), describe(dtype, shape)
                found.append(errors.TensorMismatch(NOWHERE, place, name, *kinds))
        return found + [errors.TensorExtra(NOWHERE, place, name) for name in extra]

    def require(self, expected: Expected) -> None:
        """Raise what `faults` finds, all at once."""
        if found := self.faults(expected):
            raise DiagnosticError(*found)

    def read(self, name: str, slices: Sequence[slice] | None = None) -> Tensor:
        """A slice of a tensor (default: all), freshly allocated, put together from its pieces.

        Rows that have no value are zero.
        """
        entry = self.manifest.tensors.get(name)
        if entry is None:
            missing = errors.TensorMissing(NOWHERE, self.path.name, name, tuple(self.names()))
            raise DiagnosticError(missing)
        out = torch.zeros(box_of(entry.shape, slices).shape, dtype=TORCH_DTYPES[entry.dtype])
        self.read_into(name, out, slices)
        return out

    def read_value(self, name: str, slices: Sequence[slice] | None = None) -> Tensor:
        """As `read`, of a parameter that may also be held as codes and scales; these as f32."""
        if name in self.manifest.tensors or not self.coded(name):
            return self.read(name, slices)
        codes, scales = names_of(name)
        entries = self.manifest.tensors
        at = cut_dim(entries[codes].shape, entries[scales].shape)
        if slices is None:
            return dequantized(self.read(codes), self.read(scales))
        across = [slice(None) if d == at else s for d, s in enumerate(slices)]
        value = dequantized(self.read(codes, across), self.read(scales, across))
        return value[tuple(s if d == at else slice(None) for d, s in enumerate(slices))]

    def coded(self, name: str) -> bool:
        """Whether the parameter is held as codes and scales."""
        return all(part in self.manifest.tensors for part in names_of(name))

    def read_into(self, name: str, out: Tensor, slices: Sequence[slice] | None = None) -> None:
        """Fill `out`, which may be a strided view on any device, with a slice of a tensor.

        `out` has the tensor's dtype, or one that it `converts` to. Rows that have no value are
        left as they are.
        """
        entry = self.manifest.tensors[name]
        wanted, dtype = box_of(entry.shape, slices), DTYPE_NAMES.get(out.dtype, "")
        fits = dtype == entry.dtype or converts(name, entry.dtype, dtype)
        if tuple(out.shape) != wanted.shape or not fits:
            raise InternalError(f"`{name}`: {out.dtype}{list(out.shape)} for {entry.kind()}")
        for piece in entry.pieces:
            held = Box(piece.offsets, piece.shape)
            if part := held.meet(wanted):
                out[part.slices_in(wanted)].copy_(self._stored(piece, part.slices_in(held)))

    def _stored(self, piece: Piece, slices: tuple[slice, ...]) -> Tensor:
        file = self._open(piece.file)
        return file.get_slice(piece.key)[slices] if slices else file.get_tensor(piece.key)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            try:
                self._files[name] = safe_open(str(self.path / name), framework="pt")
            except (SafetensorError, OSError) as error:
                bad = errors.CheckpointHeader(NOWHERE, self.path.name, name, str(error))
                raise DiagnosticError(bad) from error
        return self._files[name]

    def headers(self) -> Iterator[Diagnostic]:
        """Where a piece file's own header disagrees with the manifest."""
        for name, entry in self.manifest.tensors.items():
            for piece in entry.pieces:
                file = self._open(piece.file)
                stored = STORED_DTYPES[piece.dtype or entry.dtype], list(piece.shape)
                reason = f"no tensor `{piece.key}`"
                if piece.key in file.keys():  # noqa: SIM118 - the library's object is no mapping
                    part = file.get_slice(piece.key)
                    if (part.get_dtype(), part.get_shape()) == stored:
                        continue
                    reason = f"`{piece.key}` is {part.get_dtype()}{part.get_shape()}"
                yield errors.CheckpointHeader(
                    NOWHERE, self.path.name, piece.file, f"{reason}, a piece of `{name}`"
                )


def open_checkpoint(path: Path, *, hashes: bool = True) -> Checkpoint:
    """Open and verify a committed checkpoint, or raise every fault found.

    Checks the manifest's digest, that every file is there with its size and SHA-256 (which reads
    all of them, unless `hashes` is false), the headers, and that pieces cover every tensor.
    """
    content = _manifest(path)
    if found := [*_file_faults(path, content, hashes), *_tensor_faults(path, content)]:
        raise DiagnosticError(*found)
    opened = Checkpoint(path, content)
    if found := list(opened.headers()):
        raise DiagnosticError(*found)
    return opened


class Latest(msgspec.Struct, frozen=True):
    """The newest checkpoint that verifies, and a warning for each newer one that does not."""

    checkpoint: Checkpoint
    skipped: tuple[Diagnostic, ...]


def open_latest(folder: Path) -> Latest:
    """Open the newest whole checkpoint of a run, going back past damaged ones."""
    skipped: list[Diagnostic] = []
    faults: list[Diagnostic] = []
    for entry in reversed(folders.committed(folder)):
        try:
            return Latest(open_checkpoint(entry.path), tuple(skipped))
        except DiagnosticError as error:
            faults += error.diagnostics
            reason = error.diagnostics[0].message()
            skipped.append(errors.CheckpointSkipped(NOWHERE, entry.path.name, reason))
    raise DiagnosticError(errors.NoCheckpoint(NOWHERE, str(folder)), *faults)


def _manifest(path: Path) -> Manifest:
    try:
        return manifest.decode((path / manifest.NAME).read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except manifest.BadManifest as error:
        reason = str(error)
    raise DiagnosticError(errors.CheckpointManifest(NOWHERE, path.name, reason))


def _file_faults(path: Path, content: Manifest, hashes: bool) -> Iterator[Diagnostic]:
    for name, record in sorted(content.files.items()):
        file, holds = path / name, content.holds(name)
        if file.is_symlink() or not file.is_file():
            yield errors.CheckpointFileMissing(NOWHERE, path.name, name, holds)
        elif (size := file.stat().st_size) != record.bytes:
            yield errors.CheckpointFileSize(NOWHERE, path.name, name, size, record.bytes, holds)
        elif hashes and (found := hash_file(file)) != record.sha256:
            yield errors.CheckpointHash(NOWHERE, path.name, name, found, record.sha256, holds)


def _tensor_faults(path: Path, content: Manifest) -> Iterator[Diagnostic]:
    for name, entry in sorted(content.tensors.items()):
        boxes = [Box(piece.offsets, piece.shape) for piece in entry.pieces]
        dtypes = {entry.dtype, *(piece.dtype for piece in entry.pieces if piece.dtype)}
        odd = sorted(dtypes - TORCH_DTYPES.keys())
        if len(entry.absent) % 2 or (entry.absent and not entry.shape):
            reason = f"`{name}` lacks rows {list(entry.absent)}"
            yield errors.CheckpointManifest(NOWHERE, path.name, reason)
            continue
        unknown = [piece.file for piece in entry.pieces if piece.file not in content.files]
        if odd:
            yield errors.CheckpointManifest(NOWHERE, path.name, f"unknown dtype `{odd[0]}`")
        elif unknown:
            reason = f"`{name}` is in `{unknown[0]}`, which it does not list"
            yield errors.CheckpointManifest(NOWHERE, path.name, reason)
        elif fault := cover_fault(entry.shape, [*boxes, *entry.gaps]):
            yield errors.TensorCoverage(NOWHERE, path.name, name, fault)
