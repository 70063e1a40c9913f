"""A sequence in chunks: the dims that passes which work through it part by part have in common."""

from __future__ import annotations

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.span import NOWHERE
from fllmc.passes.apply_loss import BATCH
from fllmc.passes.chunk_region import Chunks
from fllmc.passes.naming import CHUNKS, PART, unique
from fllmc.passes.training_errors import NoChunks, UnevenChunks

TARGETS = "targets"


def in_chunks(program: Program, count: int, reduce: str, field: str) -> tuple[Program, Chunks, str]:
    """The program with dims for `count` chunks of its sequence, these, and the vocabulary's dim.

    DiagnosticError, about the field of the schedule, where the sequence has no such chunks.
    """
    found = logit_dims(program)
    if found is None:
        raise DiagnosticError(NoChunks(NOWHERE, "the model has no sequence of tokens", field))
    vocab, along = found
    size = program.sizes.size(along)
    if count < 1 or size % count:
        raise DiagnosticError(UnevenChunks(NOWHERE, along, size, count, field))
    taken = set(program.sizes.dims)
    chunks = Chunks(along, unique(along + PART, taken), unique(CHUNKS, taken), reduce)
    program = program.with_dim(chunks.part, size // count).with_dim(chunks.over, count)
    return program, chunks, vocab


def logit_dims(program: Program) -> tuple[str, str] | None:
    """The vocabulary and the dim of the targets that is no batch."""
    for name in program.entries:
        function = program.function(name)
        for given, kind in zip(function.inputs, function.types, strict=False):
            along = [dim for dim in kind.names if dim not in (BATCH, "microbatches")]
            if given.name.rpartition(".")[2] == TARGETS and kind.index and len(along) == 1:
                return kind.index, along[0]
    return None
