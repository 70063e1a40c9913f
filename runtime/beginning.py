"""A run that begins with a checkpoint: one of ours, or a foreign folder, on any mesh.

Each rank reads its parts alone. Only parameters are taken: states begin at their initial values,
and what an adapter adds as it says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.ir.program import Parameter
from fllmc.ir.span import NOWHERE
from fllmc.runtime import errors
from fllmc.runtime.checkpoint import folders, manifest
from fllmc.runtime.checkpoint.boxes import Shape
from fllmc.runtime.checkpoint.coded import held_as_codes, names_of
from fllmc.runtime.checkpoint.load import Checkpoint, open_checkpoint, open_latest
from fllmc.runtime.checkpoint.manifest import describe
from fllmc.runtime.checkpoint.names import STATE_MARK
from fllmc.runtime.coding import blocks_of, fill_coded
from fllmc.runtime.executor import Executor
from fllmc.runtime.foreign.errors import NoForeignNames
from fllmc.runtime.foreign.folder import open_folder
from fllmc.runtime.foreign.importing import FOREIGN, keep_files
from fllmc.runtime.foreign.reading import Reader, open_reader
from fllmc.runtime.initialise import initialise, view_of
from fllmc.runtime.parts import Part, whole_tensors
from fllmc.runtime.run_folder import CHECKPOINTS

Slices = Sequence[slice]


class Origin(Protocol):
    """What a run begins with: parameters by the names that users know."""

    def shapes(self) -> Mapping[str, Shape]:
        """The whole shapes of its parameters."""
        ...

    def read_into(self, name: str, out: Tensor, slices: Slices) -> None:
        """Fill `out`, of any floating-point dtype, with a slice of a parameter."""
        ...

    def read(self, name: str, slices: Slices) -> Tensor:
        """A slice of a parameter."""
        ...


class OwnOrigin:
    """A checkpoint of ours; its optimizer states are left out."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint = checkpoint

    def shapes(self) -> Mapping[str, Shape]:
        """As `Origin` says; what is held as codes counts as what they stand for."""
        kinds = {n: (e.dtype, e.shape) for n, e in self.checkpoint.manifest.tensors.items()}
        coded = held_as_codes(kinds)
        parts = {part for name in coded for part in names_of(name)}
        own = {n: shape for n, (_, shape) in kinds.items() if STATE_MARK not in n}
        return {**{n: s for n, s in own.items() if n not in parts}, **coded}

    def read_into(self, name: str, out: Tensor, slices: Slices) -> None:
        """As `Origin` says."""
        if self.checkpoint.coded(name):
            out.copy_(self.checkpoint.read_value(name, slices))
        else:
            self.checkpoint.read_into(name, out, slices)

    def read(self, name: str, slices: Slices) -> Tensor:
        """As `Origin` says."""
        return self.checkpoint.read_value(name, slices)


class ForeignOrigin:
    """A foreign folder, by the mapping of the plan."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def shapes(self) -> Mapping[str, Shape]:
        """As `Origin` says."""
        return {name: parts[0].part.shape for name, parts in self.reader.parts.items()}

    def read_into(self, name: str, out: Tensor, slices: Slices) -> None:
        """As `Origin` says."""
        self.reader.read_into(name, out, slices)

    def read(self, name: str, slices: Slices) -> Tensor:
        """As `Origin` says."""
        return self.reader.read(name, slices)


def begin_from(
    plan: Plan, path: Path, executor: Executor, parts: Sequence[Part], rank: int, run: Path
) -> None:
    """Fill the arena from what is at a path. All ranks call this. Raises DiagnosticError.

    Rank 0 keeps the small files of a foreign folder in the run's, so that it can be exported.
    """
    origin = open_origin(plan, path, rank)
    if found := list(faults(plan, origin, path)):
        raise DiagnosticError(*found)
    known = origin.shapes()
    fresh: list[Part] = []
    for part in parts:
        parameter = None
        if part.stored.role == "param":
            parameter = executor.plan.program.parameter(part.stored.name)
        name = base_of(part, parameter)[0] if parameter else ""
        if parameter is None or name not in known:
            fresh.append(part)
        elif parameter.holds:
            read = partial(origin.read, name)
            fill_coded(view_of(part, executor), part, parameter, read)
        else:
            origin.read_into(name, view_of(part, executor), part.slices)
    initialise(plan, executor, fresh)
    if rank == 0:
        for beside in (path / FOREIGN, path):
            if beside.is_dir() and (beside / "config.json").is_file():
                keep_files(beside, run)
                break


def open_origin(plan: Plan, path: Path, rank: int) -> Origin:
    """What is at a path: a checkpoint, a folder of them or of a run, or a foreign folder.

    Rank 0 verifies the hashes of ours.
    """
    if (path / manifest.NAME).is_file():
        return OwnOrigin(open_checkpoint(path, hashes=rank == 0))
    for folder in (path / CHECKPOINTS, path):
        if newest := folders.find_latest(folder):
            if rank == 0:
                return OwnOrigin(open_latest(folder).checkpoint)
            return OwnOrigin(open_checkpoint(newest, hashes=False))
    opened = open_folder(path)
    if plan.foreign is None:
        raise DiagnosticError(NoForeignNames(plan.train.span, f"the model of `{plan.train.name}`"))
    return ForeignOrigin(open_reader(plan.foreign, opened))


def faults(plan: Plan, origin: Origin, path: Path) -> Iterator[Diagnostic]:
    """In what the parameters at a path differ from the model's own."""
    known, place = origin.shapes(), path.name or str(path)
    wanted: dict[str, Shape] = {}
    added: set[str] = set()
    parameters = {p.name: p for stage in plan.by_stage for p in stage.program.parameters}
    for part in whole_tensors(plan).values():
        if part.stored.role == "param":
            parameter = parameters[part.stored.name]
            name, shape = base_of(part, parameter)
            wanted[name] = shape
            added |= {name} if parameter.updates else set()
    for name, shape in sorted(wanted.items()):
        if name not in known and name not in added:
            yield errors.TensorMissing(NOWHERE, place, name, tuple(sorted(known)))
        elif name in known and known[name] != shape:
            found, expected = (describe("", each) for each in (known[name], shape))
            yield errors.TensorMismatch(NOWHERE, place, name, found, expected)
    for name in sorted(known.keys() - wanted.keys()):
        yield errors.TensorExtra(NOWHERE, place, name)


def base_of(part: Part, parameter: Parameter) -> tuple[str, Shape]:
    """Name and whole shape of the parameter that a part is of; of codes, what they stand for."""
    if parameter.holds:
        how = blocks_of(part, parameter)
        return how.name, how.shape
    return part.name, part.shape
