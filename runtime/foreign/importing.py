"""A foreign folder made into a checkpoint of ours, file by file.

OUT/
  step-00000000/    the checkpoint: all parameters, bit for bit
  names.json        the mapping by which it was read, and by which it is exported
  foreign/          config.json, and what else the folder has beside tensors (tokenizer, ...)
"""

from __future__ import annotations

import shutil
from math import prod
from pathlib import Path
from typing import Any, Final

import msgspec
from torch import Tensor

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint import folders, manifest
from fllmc.runtime.checkpoint.files import DTYPE_NAMES, write_durable, write_streamed
from fllmc.runtime.checkpoint.manifest import FileRecord, Manifest, Piece, Position, TensorEntry
from fllmc.runtime.foreign import errors
from fllmc.runtime.foreign.folder import INDEX, Folder
from fllmc.runtime.foreign.reading import Lying, Reader, open_reader

NAMES: Final = "names.json"
FOREIGN: Final = "foreign"
KEPT: Final = ("*.json", "*.txt", "*.model", "*.jinja")
"""What of a folder is kept beside its tensors."""


class Imported(msgspec.Struct, frozen=True):
    """What was written: tensors of ours, out of how many foreign ones, and parameters in all."""

    path: Path
    tensors: int
    foreign: int
    elements: int


def import_folder(mapping: Foreign, folder: Folder, out: Path) -> Imported:
    """Write a checkpoint of the folder's parameters. Raises DiagnosticError and OSError.

    One file is open at a time and one tensor copied: memory is that of the largest file, and of its
    largest tensor where its order of dims differs from ours.
    """
    if out.exists() and any(out.iterdir()):
        raise DiagnosticError(errors.FolderInUse(NOWHERE, str(out)))
    reader = open_reader(mapping, folder)
    out.mkdir(parents=True, exist_ok=True)
    partial = folders.open_partial(out, "step-00000000")
    try:
        tensors = _write_all(reader, partial)
        keep_files(folder.path, out)
        names = msgspec.json.format(msgspec.json.encode(mapping), indent=1) + b"\n"
        write_durable(out / NAMES, names)
        path = out / "step-00000000"
        folders.commit(partial, path)
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)  # it held nothing before
        raise
    elements = sum(prod(entry.shape) for entry in tensors.values())
    return Imported(path, len(tensors), len(reader.entries), elements)


def _write_all(reader: Reader, partial: Path) -> dict[str, TensorEntry]:
    """Write a file of ours for each of the folder's, and the manifest."""
    files: dict[str, FileRecord] = {}
    tensors: dict[str, TensorEntry] = {}
    kinds, folder = reader.kinds(), reader.folder
    by_file: dict[str, dict[str, Lying]] = {}
    for each in (each for entry in reader.entries for each in entry.parts):
        key = f"{each.name}@{','.join(map(str, _box(each)[0]))}"
        by_file.setdefault(folder.tensors[each.foreign].file, {})[key] = each
    for number, (_, lying) in enumerate(sorted(by_file.items())):
        file = f"rank-{number:05d}.safetensors"
        files[file] = _write(partial / file, lying, reader)
        for key, each in lying.items():
            dtype = folder.tensors[each.foreign].dtype
            whole, shape = kinds[each.name]
            piece = Piece(file, key, *_box(each), "" if dtype == whole else dtype)
            before = tensors[each.name].pieces if each.name in tensors else ()
            tensors[each.name] = TensorEntry(whole, shape, (*before, piece))
    folder.close()
    ordered = {
        name: msgspec.structs.replace(
            entry, pieces=tuple(sorted(entry.pieces, key=lambda piece: piece.offsets))
        )
        for name, entry in sorted(tensors.items())
    }
    content = Manifest(manifest.SCHEMA, Position(0, 0, "", 0), ordered, files)
    write_durable(partial / manifest.NAME, manifest.encode(content))
    return ordered


def keep_files(source: Path, out: Path) -> None:
    """Keep the small files of a foreign folder below `out`."""
    (out / FOREIGN).mkdir(exist_ok=True)
    for kind in KEPT:
        for each in sorted(source.glob(kind)):
            if each.name != INDEX and each.is_file():
                shutil.copyfile(each, out / FOREIGN / each.name)


def _write(path: Path, lying: dict[str, Lying], reader: Reader) -> FileRecord:
    def value(key: str) -> Tensor:
        return reader.piece(lying[key])

    kinds: dict[str, Any] = {}
    for key, each in lying.items():
        kinds[key] = reader.folder.tensors[each.foreign].dtype, _box(each)[1]
    assert all(dtype in DTYPE_NAMES.values() for dtype, _ in kinds.values())
    return write_streamed(path, kinds, value)


def _box(lying: Lying) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Offsets and shape of a part within our tensor."""
    lead, rest = lying.lead, lying.part.shape[len(lying.lead) :]
    return (*lead, *(0 for _ in rest)), (*(1 for _ in lead), *rest)
