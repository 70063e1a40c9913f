"""A piece file: tensors streamed into the safetensors format, hashed on the way, durable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from fllmc.runtime.checkpoint.manifest import FileRecord

TORCH_DTYPES: Final[Mapping[str, torch.dtype]] = {
    "f64": torch.float64,
    "f32": torch.float32,
    "bf16": torch.bfloat16,
    "f16": torch.float16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
STORED_DTYPES: Final[Mapping[str, str]] = {name: name.upper() for name in TORCH_DTYPES}
DTYPE_NAMES: Final[Mapping[torch.dtype, str]] = {kind: name for name, kind in TORCH_DTYPES.items()}
_CHUNK = 1 << 24  # bytes copied from a device, hashed and written at a time


def write_pieces(path: Path, tensors: Mapping[str, Tensor]) -> FileRecord:
    """Write a safetensors file and fsync it; memory beyond `tensors` is bounded by a constant.

    Raises OSError. The order is by falling item size, then by name, so every tensor is aligned.
    """
    kinds = {name: (DTYPE_NAMES[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    return write_streamed(path, kinds, tensors.__getitem__)


def write_streamed(
    path: Path,
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    read: Callable[[str], Tensor],
    metadata: Mapping[str, str] | None = None,
) -> FileRecord:
    """As `write_pieces`, of tensors of known dtypes and shapes that are read one by one.

    `metadata` is what the format lets a header say beside tensors.
    """
    sizes = {name: TORCH_DTYPES[dtype].itemsize for name, (dtype, _) in kinds.items()}
    names = sorted(kinds, key=lambda name: (-sizes[name], name))
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        _write(file, _header(names, kinds, metadata), digest)
        for name in names:
            for part in _parts(read(name)):
                _write(file, part, digest)
        os.fsync(file.fileno())
        size = file.tell()
    return FileRecord(size, digest.hexdigest())


def _header(
    names: list[str],
    kinds: Mapping[str, tuple[str, tuple[int, ...]]],
    metadata: Mapping[str, str] | None,
) -> bytes:
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    offset = 0
    for name in names:
        dtype, shape = kinds[name]
        end = offset + prod(shape) * TORCH_DTYPES[dtype].itemsize
        entries[name] = {
            "dtype": STORED_DTYPES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _parts(tensor: Tensor) -> Iterator[memoryview]:
    """The tensor's bytes in row-major order, a bounded number at a time."""
    flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    for first in range(0, flat.numel(), _CHUNK):
        yield flat[first : first + _CHUNK].cpu().numpy().data


def _write(file: BinaryIO, part: bytes | memoryview, digest: hashlib._Hash) -> None:
    digest.update(part)
    left = memoryview(part)
    while left:  # a raw write may be short
        left = left[file.write(left) :]


def write_durable(path: Path, content: bytes) -> None:
    """Write a small file and fsync it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make a folder's entries durable: a rename counts only after this."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def hash_file(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
