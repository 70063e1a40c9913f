"""Filling an entry's data inputs with this rank's part of a global batch."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import torch

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.plan import Plan
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Type
from fllmc.runtime import data_errors
from fllmc.runtime.data.documents import Array
from fllmc.runtime.data.windows import Batch
from fllmc.runtime.executor import Executor

Read = Callable[[int, int], Batch]
"""Samples `first .. first + count`."""


class Layout(msgspec.Struct, frozen=True):
    """How a global batch lies on the mesh: `microbatches` times `batch` samples of `seq` tokens.

    This rank has micro-batches `micro`, of each the samples `rows`, of each the tokens `columns`,
    stretch by stretch.
    """

    microbatches: int
    batch: int
    seq: int
    micro: range
    rows: range
    columns: tuple[range, ...]

    @property
    def samples(self) -> int:
        """Samples of one global batch."""
        return self.microbatches * self.batch


class Feeder:
    """The data inputs of one entry on one rank. Inputs are told apart by the end of their name."""

    def __init__(self, plan: Plan, executor: Executor, entry: str, rank: int) -> None:
        plan, whole = plan.of_rank(rank), plan
        function = plan.program.function(entry)
        sizes = plan.program.sizes
        self.tensors: dict[str, torch.Tensor] = {}
        self.layout = _layout(plan, tokens_type(whole, entry), rank)
        for number, given in enumerate(function.inputs):
            if given.role in ("param", "state", "host"):
                continue
            field, kind = given.name.rpartition(".")[2], function.types[number]
            tensor = executor.tensor(given.name)
            if tuple(tensor.shape) != sizes.local_shape(kind):
                raise InternalError(f"`{given.name}` of {entry} shares its name with another")
            self.tensors[field] = tensor

    def fill(self, first: int, read: Read) -> None:
        """Give the entry the global batch that begins with sample `first`."""
        own = self.layout
        for at, micro in enumerate(own.micro):
            start = first + micro * own.batch + own.rows.start
            batch = read(start, len(own.rows))
            numbers = torch.arange(start, start + len(own.rows))
            for field, tensor in self.tensors.items():
                target = tensor[at] if _has_micro(tensor, field) else tensor
                if field == "samples":
                    target.copy_(numbers)
                    continue
                whole = torch.from_numpy(column_of(batch, field))
                parts = [whole[:, stretch.start : stretch.stop] for stretch in own.columns]
                torch.cat(parts, dim=1, out=target) if len(parts) > 1 else target.copy_(parts[0])


def column_of(batch: Batch, field: str) -> Array:
    """A column of the data, or DiagnosticError that names those that there are."""
    column = batch.column(field)
    if column is None:
        known = ", ".join(("tokens", "targets", "weights", *batch.more))
        raise DiagnosticError(data_errors.NoSuchColumn(NOWHERE, field, known))
    return column


def tokens_type(plan: Plan, entry: str) -> Type:
    """The type of an entry's tokens, on the pipeline stage that reads them."""
    for stage in plan.by_stage:
        function = stage.program.function(entry)
        for given, kind in zip(function.inputs, function.types, strict=False):
            if given.role == "data" and given.name.rpartition(".")[2] == "tokens":
                return kind
    raise InternalError(f"{entry} reads no tokens")


def _has_micro(tensor: torch.Tensor, field: str) -> bool:
    return tensor.dim() == (2 if field == "samples" else 3)


def _layout(plan: Plan, kind: Type, rank: int) -> Layout:
    """The dims of `tokens` are [microbatches?, batch, seq]."""
    sizes = plan.program.sizes
    shape, place = sizes.shape(kind), sizes.mesh.coordinates(rank)
    *outer, columns = (sizes.stretches(dim, place) for dim in kind.dims)
    ranges = [stretch for (stretch,) in outer]  # only the sequence is dealt in several stretches
    if len(shape) == 2:
        shape, ranges = (1, *shape), [range(1), *ranges]
    return Layout(shape[0], shape[1], shape[2], ranges[0], ranges[1], columns)
