"""Saving a checkpoint from all ranks, so that it exists wholly or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
from msgspec import structs
from torch import Tensor

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.span import NOWHERE
from fllmc.runtime import errors
from fllmc.runtime.checkpoint import folders, manifest
from fllmc.runtime.checkpoint.boxes import Box, Shape, cover_fault
from fllmc.runtime.checkpoint.files import DTYPE_NAMES, write_durable, write_pieces
from fllmc.runtime.checkpoint.manifest import FileRecord, Manifest, Piece, Position, TensorEntry
from fllmc.runtime.checkpoint.names import layer_path

Gather: TypeAlias = Callable[[Any], Sequence[Any]]
"""Every rank's JSON-like value, in rank order, on every rank; so it is a barrier, too."""


class Shard(msgspec.Struct, frozen=True):
    """The part of a tensor that a rank has: `value` begins at `offsets` of a tensor of `shape`.

    `owned` on exactly one of the ranks that have the same part. `dtype` is the whole tensor's where
    this part has another, and `absent` the ends of stretches of rows of which no rank has a value.
    """

    name: str
    value: Tensor
    shape: Shape
    offsets: Shape
    owned: bool = True
    dtype: str = ""
    absent: tuple[int, ...] = ()


class _Written(msgspec.Struct, frozen=True):
    """What a rank tells the others of its file; `fault` instead where it could not write one."""

    file: str = ""
    record: FileRecord | None = None
    pieces: tuple[tuple[str, TensorEntry], ...] = ()
    fault: str = ""


def alone(value: Any) -> Sequence[Any]:
    """The gather of a run on one rank."""
    return [value]


def layer_shards(
    path: str, stack: str, value: Tensor, shape: Shape, offsets: Shape, owned: bool = True
) -> list[Shard]:
    """A stacked parameter `[layers, ...]` as one shard a layer, under the names users see.

    `shape` and `offsets` include the layers. The values are views: nothing is copied.
    """
    return [
        Shard(layer_path(path, stack, offsets[0] + i), layer, shape[1:], offsets[1:], owned)
        for i, layer in enumerate(value.unbind(0))
    ]


def save(
    folder: Path,
    position: Position,
    shards: Iterable[Shard],
    *,
    rank: int = 0,
    gather: Gather = alone,
    keep: int = 0,
) -> Path:
    """Commit a checkpoint below `folder` and return its path. All ranks call this together.

    Each rank writes and fsyncs one file; rank 0 then writes the manifest and renames. Where one
    rank fails, all raise its diagnostic and what was there before stays. With `keep` above 0 only
    that many checkpoints are kept, the new one among them.
    """
    begun = _begin(folder, position.step) if rank == 0 else None
    name, partial_name, fault = gather(begun)[0]
    _raise_fault(name, fault)
    partial = folder / partial_name
    mine = _write(partial, rank, [s for s in shards if s.owned and s.value.numel()])
    written = [msgspec.convert(w, _Written) for w in gather(msgspec.to_builtins(mine))]
    fault = next((w.fault for w in written if w.fault), "")
    if rank == 0:
        fault = fault or _commit(partial, folder / name, position, written)
        if fault:  # room may be what is lacking
            shutil.rmtree(partial, ignore_errors=True)
    _raise_fault(name, gather(fault)[0])
    fault = _prune(folder, keep) if rank == 0 and keep > 0 else ""
    if fault := gather(fault)[0]:
        raise DiagnosticError(errors.PruneFailed(NOWHERE, name, fault))
    return folder / name


def _begin(folder: Path, step: int) -> tuple[str, str, str]:
    """The name to commit under, that to write under, and the fault in words, or nothing."""
    try:
        name = folders.free_name(folder, step)
        return name, folders.open_partial(folder, name).name, ""
    except OSError as error:
        return f"step-{step:08d}", "", _reason(error)


def _write(partial: Path, rank: int, shards: list[Shard]) -> _Written:
    file = f"rank-{rank:05d}.safetensors"
    # One rank may have several parts of one tensor, so a key says where the part begins.
    keys = {f"{s.name}@{','.join(map(str, s.offsets))}": s for s in shards}
    if len(keys) != len(shards):
        raise InternalError("a rank owns the same part of a tensor twice")
    try:
        record = write_pieces(partial / file, {key: s.value for key, s in keys.items()})
    except OSError as error:
        return _Written(fault=f"rank {rank}: {_reason(error)}")
    return _Written(file, record, tuple(_piece(file, key, s) for key, s in keys.items()))


def _piece(file: str, key: str, shard: Shard) -> tuple[str, TensorEntry]:
    own = DTYPE_NAMES[shard.value.dtype]
    whole = shard.dtype or own
    apart = own if own != whole else ""
    piece = Piece(file, key, shard.offsets, tuple(shard.value.shape), apart)
    return shard.name, TensorEntry(whole, shard.shape, (piece,), shard.absent)


def _commit(partial: Path, target: Path, position: Position, written: list[_Written]) -> str:
    """Rank 0's part. The fault in words, or nothing."""
    files = {w.file: w.record for w in written if w.record}
    content = Manifest(manifest.SCHEMA, position, _entries(written), files)
    try:
        write_durable(partial / manifest.NAME, manifest.encode(content))
        folders.commit(partial, target)
    except OSError as error:
        return _reason(error)
    return ""


def _prune(folder: Path, keep: int) -> str:
    """The fault in words, or nothing."""
    try:
        folders.prune(folder, keep)
    except OSError as error:
        return _reason(error)
    return ""


def _entries(written: list[_Written]) -> dict[str, TensorEntry]:
    """The tensors that all ranks' pieces make up. Pieces that don't are a fault of the plan."""
    entries: dict[str, TensorEntry] = {}
    pieces: dict[str, list[Piece]] = {}
    for name, entry in (each for w in written for each in w.pieces):
        bare = structs.replace(entry, pieces=())
        if entries.setdefault(name, bare) != bare:
            raise InternalError(f"ranks disagree on the dtype or shape of `{name}`")
        pieces.setdefault(name, []).extend(entry.pieces)
    for name, bare in sorted(entries.items()):
        boxes = [Box(p.offsets, p.shape) for p in pieces[name]]
        if fault := cover_fault(bare.shape, [*boxes, *bare.gaps]):
            raise InternalError(f"the pieces of `{name}` {fault}")
        ordered = tuple(sorted(pieces[name], key=lambda p: p.offsets))
        entries[name] = structs.replace(bare, pieces=ordered)
    return dict(sorted(entries.items()))


def _reason(error: OSError) -> str:
    place = f" (`{error.filename}`)" if error.filename else ""
    return (error.strerror or str(error)) + place


def _raise_fault(name: str, fault: str) -> None:
    if fault:
        raise DiagnosticError(errors.SaveFailed(NOWHERE, name, fault))
