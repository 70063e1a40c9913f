"""A folder read by a mapping: that it holds what the mapping names, and our tensors out of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from math import prod

import msgspec
import torch
from torch import Tensor

from fllmc.ir import foreign
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.foreign import Foreign, Part
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint.boxes import Shape
from fllmc.runtime.checkpoint.files import TORCH_DTYPES
from fllmc.runtime.checkpoint.manifest import describe
from fllmc.runtime.foreign import errors, windows
from fllmc.runtime.foreign.folder import Folder, Held

_AT_ONCE = 1 << 22  # elements of a tensor that are compared at a time


class Lying(msgspec.Struct, frozen=True):
    """A part of one of our tensors: in the tensor `foreign`, at `lead` along our first dims."""

    name: str
    foreign: str
    lead: tuple[int, ...]
    part: Part


class Entry(msgspec.Struct, frozen=True):
    """A foreign tensor: the names that it may have, and what lies in it."""

    names: tuple[str, ...]
    shape: Shape
    parts: tuple[Lying, ...]

    @property
    def held(self) -> str:
        """The names of our tensors in it, for people."""
        return ", ".join(f"`{each.name}`" for each in self.parts)


def entries(mapping: Foreign) -> Iterator[Entry]:
    """All foreign tensors of a mapping, in its order."""
    for tensor in mapping.tensors:
        shape = tensor.shape
        for place in tensor.places():
            names = tuple(name.at(place) for name in tensor.names)
            yield Entry(names, shape, tuple(_lying(p, names[0], place) for p in tensor.parts))


def _lying(part: Part, name: str, place: foreign.Indices) -> Lying:
    return Lying(part.name.at(place), name, tuple(each.at(place) for each in part.lead), part)


class Reader:
    """Our tensors, out of a folder that holds all that the mapping names."""

    def __init__(self, mapping: Foreign, folder: Folder) -> None:
        self.mapping, self.folder = mapping, folder
        self.entries = tuple(_as_held(entry, folder) for entry in entries(mapping))
        self.parts: dict[str, list[Lying]] = {}
        for entry in self.entries:
            for lying in entry.parts:
                self.parts.setdefault(lying.name, []).append(lying)

    def kinds(self) -> dict[str, tuple[str, Shape]]:
        """Dtype and shape of our tensors; of parts of several dtypes the widest."""
        found: dict[str, tuple[str, Shape]] = {}
        for name, parts in sorted(self.parts.items()):
            dtypes = {self.folder.tensors[each.foreign].dtype for each in parts}
            found[name] = (
                max(dtypes, key=lambda each: TORCH_DTYPES[each].itemsize),
                parts[0].part.shape,
            )
        return found

    def piece(self, lying: Lying) -> Tensor:
        """A part of one of our tensors, whole, with its leading dims as 1."""
        value = self._read(lying, windows.whole_of(lying.part))
        return value.reshape((1,) * len(lying.lead) + tuple(value.shape)) if lying.lead else value

    def read_into(self, name: str, out: Tensor, slices: Sequence[slice]) -> None:
        """Fill `out`, which has any floating-point dtype, with a slice of one of our tensors."""
        for lying in self.parts[name]:
            count = len(lying.lead)
            ahead = [
                at - s.start
                for at, s in zip(lying.lead, slices, strict=False)
                if s.start <= at < s.stop
            ]
            if len(ahead) == count:
                ranges = [(s.start, s.stop) for s in slices[count:]]
                out[tuple(ahead)].copy_(self._read(lying, ranges))

    def read(self, name: str, slices: Sequence[slice]) -> Tensor:
        """As `read_into`, freshly allocated."""
        dtype = TORCH_DTYPES[self.folder.tensors[self.parts[name][0].foreign].dtype]
        out = torch.empty([s.stop - s.start for s in slices], dtype=dtype)
        self.read_into(name, out, slices)
        return out

    def _read(self, lying: Lying, ranges: windows.Ranges) -> Tensor:
        return windows.read(
            lying.part, ranges, lambda slices: self.folder.fetch(lying.foreign, slices)
        )


def open_reader(mapping: Foreign, folder: Folder) -> Reader:
    """The reader of a folder. Raises DiagnosticError with all in which it is not as mapped."""
    found = list(faults(mapping, folder))
    if found:
        raise DiagnosticError(*found)
    return Reader(mapping, folder)


def faults(mapping: Foreign, folder: Folder) -> Iterator[Diagnostic]:
    """Everything in which a folder differs from a mapping: names, shapes, dtypes, tied values."""
    known: set[str] = set()
    extra = extras(mapping, folder)
    spare = tuple(extra)
    for entry in entries(mapping):
        known.update(entry.names)
        there = [name for name in entry.names if name in folder.tensors]
        if not there:
            yield errors.ForeignMissing(
                NOWHERE, str(folder.path), entry.names[0], entry.parts[0].name, spare
            )
        wrong = [each for name in there for each in _differs(entry, name, folder)]
        yield from wrong
        for other in there[1:] if not wrong else ():
            if not _equal(folder, there[0], other):
                files = (str(folder.path / folder.tensors[n].file) for n in (there[0], other))
                yield errors.TiedDiffer(NOWHERE, there[0], other, *files)
    for name, held in extra.items():
        yield errors.ForeignExtra(NOWHERE, str(folder.path / held.file), name, mapping.name)


def extras(mapping: Foreign, folder: Folder) -> dict[str, Held]:
    """Tensors of the folder that the mapping neither names nor ignores."""
    known = {name for entry in entries(mapping) for name in entry.names}
    ignored = [
        re.compile(".*".join(map(re.escape, pattern.split("*")))) for pattern in mapping.ignored
    ]
    return {
        name: held
        for name, held in sorted(folder.tensors.items())
        if name not in known and not any(each.fullmatch(name) for each in ignored)
    }


def _differs(entry: Entry, name: str, folder: Folder) -> Iterator[Diagnostic]:
    held = folder.tensors[name]
    kind = TORCH_DTYPES.get(held.dtype)
    file, found = str(folder.path / held.file), describe(held.dtype, held.shape)
    if held.shape != entry.shape:
        wanted = f"`[{', '.join(map(str, entry.shape))}]` by the spec"
        yield errors.ForeignDiffers(NOWHERE, file, name, found, wanted, entry.held)
    elif kind is None or not kind.is_floating_point:
        wanted = "in f64, f32, f16 or bf16"
        yield errors.ForeignDiffers(NOWHERE, file, name, found, wanted, entry.held)


def _equal(folder: Folder, first: str, second: str) -> bool:
    """Whether two tensors of one shape have the same bytes, compared by rows."""
    shape = folder.tensors[first].shape
    if folder.tensors[first].dtype != folder.tensors[second].dtype:
        return False
    rows = max(1, _AT_ONCE // max(1, prod(shape[1:])))
    for at in range(0, shape[0] if shape else 1, rows):
        slices = (slice(at, at + rows), *(slice(0, n) for n in shape[1:])) if shape else ()
        a, b = (folder.fetch(name, slices).contiguous().view(-1) for name in (first, second))
        if not torch.equal(a.view(torch.uint8), b.view(torch.uint8)):
            return False
    return True


def _as_held(entry: Entry, folder: Folder) -> Entry:
    """The entry under the first of its names that the folder has."""
    name = next(each for each in entry.names if each in folder.tensors)
    if name == entry.names[0]:
        return entry
    parts = tuple(msgspec.structs.replace(each, foreign=name) for each in entry.parts)
    return msgspec.structs.replace(entry, parts=parts)


Kinds = Mapping[str, tuple[str, Shape]]
"""Dtypes and whole shapes by name."""
