"""A checkpoint of ours written as a foreign folder: shards, an index, and a `config.json`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.span import NOWHERE
from fllmc.runtime import errors as checkpoint_errors
from fllmc.runtime.checkpoint.boxes import Shape
from fllmc.runtime.checkpoint.files import (
    TORCH_DTYPES,
    write_durable,
    write_streamed,
)
from fllmc.runtime.checkpoint.load import Checkpoint
from fllmc.runtime.foreign import errors, windows
from fllmc.runtime.foreign.folder import CONFIG, INDEX, SINGLE
from fllmc.runtime.foreign.reading import Entry, entries

SHARD_BYTES: Final = 5_000_000_000
DTYPE_WORDS: Final = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
Read = Callable[[str], Tensor]


class Exported(msgspec.Struct, frozen=True):
    """What was written: files, foreign tensors and bytes."""

    files: tuple[str, ...]
    tensors: int
    size: int


def export(
    mapping: Foreign,
    checkpoint: Checkpoint,
    out: Path,
    beside: Path | None,
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
    read: Read | None = None,
) -> Exported:
    """Write a folder that the foreign format's library loads. Raises DiagnosticError and OSError.

    `beside` has the files that were kept when the checkpoint was imported, if it was. With a
    `dtype` all tensors are converted; else each is as it is stored.
    """
    if out.exists() and any(out.iterdir()):
        raise DiagnosticError(errors.FolderInUse(NOWHERE, str(out)))
    shapes, dtypes = _stored(checkpoint)
    listed = list(entries(mapping))
    if found := list(_faults(listed, shapes, checkpoint)):
        raise DiagnosticError(*found)
    kinds = {entry.names[0]: (dtype or _dtype(entry, dtypes), entry.shape) for entry in listed}
    by_name = {entry.names[0]: entry for entry in listed}
    value = read or checkpoint.read_value

    def released(tensor: Tensor) -> Tensor:
        checkpoint.close()  # what is mapped counts as memory, though it was read
        return tensor

    out.mkdir(parents=True, exist_ok=True)
    shards = _shards(kinds, shard_bytes)
    files: dict[str, str] = {}
    for number, names in enumerate(shards, 1):
        file = SINGLE if len(shards) == 1 else _shard_name(number, len(shards))
        files.update(dict.fromkeys(names, file))
        here = {name: kinds[name] for name in names}
        write_streamed(
            out / file,
            here,
            lambda name: released(assembled(by_name[name], kinds[name][0], value)),
            {"format": "pt"},
        )
    size = sum(_bytes(kind) for kind in kinds.values())
    if len(shards) > 1:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(files.items()))}
        write_durable(out / INDEX, _json(index))
    common = {kind for kind, _ in kinds.values()}
    _write_config(mapping, out, beside, common.pop() if len(common) == 1 else "")
    return Exported(tuple(sorted(set(files.values()))), len(kinds), size)


def assembled(entry: Entry, dtype: str, read: Read) -> Tensor:
    """A foreign tensor, put together from ours."""
    out = torch.empty(entry.shape, dtype=TORCH_DTYPES[dtype])
    for lying in entry.parts:
        windows.write(lying.part, read(lying.name)[lying.lead], out)
    return out


def _stored(checkpoint: Checkpoint) -> tuple[dict[str, Shape], dict[str, str]]:
    """Shapes and dtypes of what a checkpoint holds; a quantised parameter counts as f32."""
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    for name, entry in checkpoint.manifest.tensors.items():
        shapes[name], dtypes[name] = entry.shape, entry.dtype
    return shapes, dtypes


def _faults(
    listed: Sequence[Entry], shapes: Mapping[str, Shape], checkpoint: Checkpoint
) -> Iterator[Diagnostic]:
    """What of ours the checkpoint lacks, or has in another shape."""
    place = checkpoint.path.name
    for entry in listed:
        for lying in entry.parts:
            found = shapes.get(lying.name)
            if found is None and not checkpoint.coded(lying.name):
                yield checkpoint_errors.TensorMissing(NOWHERE, place, lying.name, tuple(shapes))
            elif found is not None and found != lying.part.shape:
                kinds = [str(list(each)) for each in (found, lying.part.shape)]
                yield checkpoint_errors.TensorMismatch(NOWHERE, place, lying.name, *kinds)


def _dtype(entry: Entry, dtypes: Mapping[str, str]) -> str:
    """The widest dtype of what lies in a foreign tensor."""
    kinds = [dtypes.get(each.name, "f32") for each in entry.parts]
    return max(kinds, key=lambda kind: TORCH_DTYPES[kind].itemsize)


def _shards(kinds: Mapping[str, tuple[str, Shape]], most: int) -> list[list[str]]:
    """The names in shards of at most so many bytes, but for tensors that are larger themselves."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, kind in kinds.items():
        own = _bytes(kind)
        if shards[-1] and size + own > most:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += own
    return shards


def _bytes(kind: tuple[str, Shape]) -> int:
    return prod(kind[1]) * TORCH_DTYPES[kind[0]].itemsize


def _shard_name(number: int, count: int) -> str:
    return f"model-{number:05d}-of-{count:05d}.safetensors"


def _write_config(mapping: Foreign, out: Path, beside: Path | None, dtype: str) -> None:
    """The configuration: what was kept of it, and what the spec says."""
    config: dict[str, Any] = {}
    if beside is not None and beside.is_dir():
        for each in sorted(beside.iterdir()):
            if each.is_file() and each.name != CONFIG:
                shutil.copyfile(each, out / each.name)
        if (beside / CONFIG).is_file():
            config = msgspec.json.decode((beside / CONFIG).read_bytes())
    kept = bool(config)
    sizes = dict(mapping.sizes)
    pairs: list[tuple[str, Any]] = [(key, sizes[dim]) for dim, key in mapping.dims]
    pairs += [(key, msgspec.json.decode(value)) for key, value in mapping.values]
    for key, value in pairs:
        _set(config, key.split("."), value, kept)
    if dtype in DTYPE_WORDS:
        for key in {"dtype", "torch_dtype"} & config.keys() or {"dtype"}:
            config[key] = DTYPE_WORDS[dtype]
    write_durable(out / CONFIG, _json(config))


def _set(config: dict[str, Any], parts: list[str], value: Any, kept: bool) -> None:
    """Set a key of a configuration; in one that was kept no key is added, and 7.0 stays for 7."""
    for part in parts[:-1]:
        if kept and not isinstance(config.get(part), dict):
            return
        config = config.setdefault(part, {})
    last = parts[-1]
    if not kept or (config.get(last) is not None and config[last] != value):
        config[last] = value


def _json(content: Any) -> bytes:
    return msgspec.json.format(msgspec.json.encode(content), indent=2) + b"\n"
