"""A folder of safetensors files: which tensors there are, where, and that files are whole.

Files are opened by the safetensors library, which checks their headers; nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import safe_open
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint.files import STORED_DTYPES
from fllmc.runtime.foreign import errors

CONFIG: Final = "config.json"
SINGLE: Final = "model.safetensors"
INDEX: Final = "model.safetensors.index.json"
PICKLES: Final = ("*.bin", "*.pt", "*.pth", "*.ckpt")
LARGEST_HEADER: Final = 100_000_000
AT_ONCE: Final = 1 << 22  # bytes of a file that are read before it is mapped anew
DTYPES: Final[Mapping[str, str]] = {stored: name for name, stored in STORED_DTYPES.items()}


class Held(msgspec.Struct, frozen=True):
    """A tensor of the folder. `dtype` is as the IR names it, or as the file does where it can't."""

    file: str
    dtype: str
    shape: tuple[int, ...]


class Folder:
    """An open folder. One file is mapped at a time, and anew when so much of it was read.

    So what was read is no longer counted as memory.
    """

    def __init__(self, path: Path, tensors: Mapping[str, Held]) -> None:
        self.path = path
        self.tensors = tensors
        self._file = ""
        self._open: Any = None
        self._read = 0

    def fetch(self, name: str, slices: tuple[slice, ...]) -> Tensor:
        """A slice of a tensor, which reads its own bytes alone."""
        held = self.tensors[name]
        if held.file != self._file or self._read > AT_ONCE:
            self.close()
            self._open, self._file = (
                safe_open(str(self.path / held.file), framework="pt"),
                held.file,
            )
        found = self._open.get_slice(name)[slices] if slices else self._open.get_tensor(name)
        self._read += found.numel() * found.element_size()
        return found

    def close(self) -> None:
        """Unmap the file."""
        self._open, self._file, self._read = None, "", 0


def read_config(path: Path) -> dict[str, Any]:
    """The folder's configuration. Raises DiagnosticError."""
    return _json(path / CONFIG)


def open_folder(path: Path) -> Folder:
    """The folder, all headers read and checked. Raises DiagnosticError with all that is wrong."""
    files, claimed = _files(path)
    found: list[Diagnostic] = []
    tensors: dict[str, Held] = {}
    for file in files:
        try:
            for name, held in _tensors(path, file, claimed):
                if name in tensors:
                    places = f"`{tensors[name].file}` and `{file}`"
                    found.append(errors.ForeignTwice(NOWHERE, name, places))
                tensors.setdefault(name, held)
        except DiagnosticError as error:
            found += error.diagnostics
    bad = {held.file for held in found if isinstance(held, errors.BadTensorFile)}
    for name, file in sorted(claimed.items()):
        held = tensors.get(name)
        if (held is not None and held.file != file) or (held is None and file not in bad):
            where = f"it is in `{held.file}`" if held else "it is not there"
            reason = f"says that `{name}` is in `{file}`, and {where}"
            found.append(errors.BadIndex(NOWHERE, str(path / INDEX), reason))
    if found:
        raise DiagnosticError(*found)
    return Folder(path, tensors)


def _files(path: Path) -> tuple[list[str], dict[str, str]]:
    """The folder's safetensors files, and what its index says of each tensor, if it has one."""
    if (path / INDEX).is_file():
        claimed = _json(path / INDEX).get("weight_map")
        if not isinstance(claimed, dict) or not all(isinstance(v, str) for v in claimed.values()):
            raise _bad_index(path, "it has no `weight_map` of names to files")
        files = sorted(set(claimed.values()))
        for file in files:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise _bad_index(path, f"`{file}` is no safetensors file of the folder")
            if not (path / file).is_file():
                names = sorted(name for name, where in claimed.items() if where == file)
                raise _bad_index(path, f"the file `{file}` is missing; it holds {_listed(names)}")
        return files, claimed
    if (path / SINGLE).is_file():
        return [SINGLE], {}
    files = sorted(each.name for each in path.glob("*.safetensors")) if path.is_dir() else []
    if not files:
        pickles = [each.name for kind in PICKLES for each in sorted(path.glob(kind))]
        reason = f"; `{pickles[0]}` is a pickle, which could run code" if pickles else ""
        reason = reason if path.is_dir() else ": there is no such folder"
        raise DiagnosticError(errors.NoTensors(NOWHERE, str(path), reason))
    return files, {}


def _tensors(path: Path, file: str, claimed: Mapping[str, str]) -> Iterator[tuple[str, Held]]:
    """The tensors of a file."""
    names = sorted(name for name, where in claimed.items() if where == file)
    try:
        _no_repeats(path / file)
        with safe_open(str(path / file), framework="pt") as opened:
            for name in sorted(opened.keys()):
                part = opened.get_slice(name)
                stored = str(part.get_dtype())
                yield name, Held(file, DTYPES.get(stored, stored), tuple(part.get_shape()))
    except DiagnosticError:
        raise
    except Exception as error:  # the library raises its own class, OSError, and numpy's ValueError
        held = _listed(names) if names else "what a header would say"
        bad = errors.BadTensorFile(NOWHERE, str(path / file), str(error), held)
        raise DiagnosticError(bad) from error


def _no_repeats(file: Path) -> None:
    """Raise where a header names a tensor twice: the library takes the last, and says nothing."""
    with file.open("rb") as stream:
        size = int.from_bytes(stream.read(8), "little")
        text = stream.read(size) if size <= LARGEST_HEADER else b""

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in items]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            places = f"the header of `{file}` twice"
            raise DiagnosticError(errors.ForeignTwice(NOWHERE, twice, places))
        return dict(items)

    try:
        json.loads(text, object_pairs_hook=pairs)
    except (ValueError, RecursionError):
        return  # the library says what is wrong with it


def _json(file: Path) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(file.read_bytes())
    except OSError as error:
        bad = errors.BadIndex(NOWHERE, str(file), error.strerror or str(error))
        raise DiagnosticError(bad) from error
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DiagnosticError(errors.BadIndex(NOWHERE, str(file), f"no JSON: {error}")) from error
    if not isinstance(found, dict):
        raise DiagnosticError(errors.BadIndex(NOWHERE, str(file), "it is no JSON object"))
    return found


def _bad_index(path: Path, reason: str) -> DiagnosticError:
    return DiagnosticError(errors.BadIndex(NOWHERE, str(path / INDEX), reason))


def _listed(names: list[str]) -> str:
    shown = ", ".join(f"`{name}`" for name in names[:3])
    return shown + (f" and {len(names) - 3} more" if len(names) > 3 else "")
