"""chunk-loss: training -> training. Logits are made, used and forgotten chunk by chunk.

    chunk-loss{chunks=8}

All ops that see logits (values along both the vocabulary and the sequence) become the body of a
scan over chunks of the sequence: forward, loss, and gradients to the hidden values and to the head,
which is added up in `reduce`. So the full logits never exist, in no entry, and nothing is computed
twice. Position i of the sequence is in chunk i mod n, so that ranks that divide the sequence need
not exchange it.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Function, Level, Program
from fllmc.ir.span import NOWHERE
from fllmc.passes.base import Context, Pass
from fllmc.passes.chunk_region import Chunks, between, chunked, obstacle, with_what_follows
from fllmc.passes.chunk_sequence import in_chunks
from fllmc.passes.training_errors import NoChunks


class ChunkLoss(Pass, frozen=True):
    """Run what sees logits by chunks of the sequence."""

    name: ClassVar[str] = "chunk-loss"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    chunks: int = 1
    reduce: str = "f32"

    def run(self, program: Program, cx: Context) -> Program:
        """The program with a scan over chunks in each function that makes logits."""
        if self.chunks == 1:
            return program
        program, chunks, vocab = in_chunks(program, self.chunks, self.reduce, "loss_chunks")
        for function in program.functions:
            program = in_function(function, vocab, chunks, program)
        return program


def in_function(function: Function, vocab: str, chunks: Chunks, program: Program) -> Program:
    """The program with one function run by chunks where it sees logits."""

    def is_logits(value: int) -> bool:
        return {vocab, chunks.dim} <= set(function.types[value].names)

    seeds = {
        at
        for at, op in enumerate(function.ops)
        if any(is_logits(value) for value in (*op.operands, *op.results))
    }
    if not seeds or any(is_logits(value) for value in range(len(function.inputs))):
        return program
    region = with_what_follows(function, between(function, seeds), chunks.dim)
    why = obstacle(function, region, chunks.dim)
    if why:
        raise DiagnosticError(NoChunks(NOWHERE, why))
    return program.with_functions(*chunked(function, region, chunks, program))
