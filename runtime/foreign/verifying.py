"""The round trip of a foreign folder in memory, tensor by tensor, and the mapping as a table."""

from __future__ import annotations

import msgspec
import torch

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.foreign import Foreign
from fllmc.ir.span import NOWHERE
from fllmc.runtime.checkpoint.files import TORCH_DTYPES
from fllmc.runtime.foreign import errors, windows
from fllmc.runtime.foreign.folder import Folder
from fllmc.runtime.foreign.reading import Reader, open_reader


class Verified(msgspec.Struct, frozen=True):
    """How many tensors and bytes were compared, and those that differ."""

    tensors: int
    size: int
    faults: tuple[Diagnostic, ...]


class Row(msgspec.Struct, frozen=True):
    """A line of the table: our tensors, the foreign one, its shape; indices stand in braces."""

    ours: str
    foreign: str
    shape: str


def verify(mapping: Foreign, folder: Folder) -> Verified:
    """Read each tensor as an import does, put it together as an export does, and compare.

    Raises DiagnosticError where the folder is not as the mapping says.
    """
    reader = open_reader(mapping, folder)
    found: list[Diagnostic] = []
    total = 0
    for entry in sorted(
        reader.entries, key=lambda each: folder.tensors[each.parts[0].foreign].file
    ):
        name = entry.parts[0].foreign
        held = folder.tensors[name]
        back = torch.empty(entry.shape, dtype=TORCH_DTYPES[held.dtype])
        for lying in entry.parts:
            windows.write(lying.part, _ours(reader, lying.name, lying.lead, name), back)
        stored = folder.fetch(name, tuple(slice(0, size) for size in held.shape))
        total += back.numel() * back.element_size()
        if not torch.equal(_bytes(back), _bytes(stored)):
            found.append(errors.RoundTrip(NOWHERE, name, "its bytes differ"))
    folder.close()
    return Verified(len(reader.entries), total, tuple(found))


def _ours(reader: Reader, name: str, lead: tuple[int, ...], foreign: str) -> torch.Tensor:
    """What lies in one foreign tensor of a tensor of ours, in our layout."""
    lying = next(p for p in reader.parts[name] if p.foreign == foreign and p.lead == lead)
    value = reader.piece(lying).contiguous()
    return value.reshape(value.shape[len(lead) :])


def _bytes(value: torch.Tensor) -> torch.Tensor:
    return value.contiguous().view(-1).view(torch.uint8)


def rows(mapping: Foreign) -> list[Row]:
    """The mapping, a line for each kind of foreign tensor."""
    found: list[Row] = []
    for tensor in mapping.tensors:
        ours = ", ".join(
            str(part.name) + "".join(f"[{_place(each)}]" for each in part.lead)
            for part in tensor.parts
        )
        names = " = ".join(map(str, tensor.names))
        found.append(Row(ours, names, "[" + ", ".join(map(str, tensor.shape)) + "]"))
    return found


def _place(count: object) -> str:
    from fllmc.ir.foreign import Count, Pattern

    assert isinstance(count, Count)
    text = str(Pattern((count,)))
    return text if not count.factors else text[1:-1]
