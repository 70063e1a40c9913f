"""chunk-backward: training -> training. A layer's wide values exist for one part at a time.

    chunk-backward{chunks=4}

In the backward pass of a stack, values as wide as the layer's input or wider are recomputed, used
and forgotten chunk by chunk along the sequence, and gradients of matrices are added up in `reduce`
over the chunks, as StreamBP does (arXiv 2506.03077). Attention and what else mixes positions stay
whole: the ops between them are cut, those together that have the same of these before them, where
more stays within the chunks than is copied in and out. What the forward pass keeps is as it was:
`recompute` makes it little.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from fllmc.ir.program import Function, Level, Program
from fllmc.ir.span import NOWHERE
from fllmc.passes.base import Context, Pass
from fllmc.passes.chunk_region import (
    DIVISIBLE,
    Chunks,
    between,
    chunked,
    flows,
    obstacle,
    readers,
    with_what_follows,
)
from fllmc.passes.chunk_sequence import in_chunks
from fllmc.passes.recompute_stacks import scan_of, stacks
from fllmc.passes.training_errors import NothingToChunk


class ChunkBackward(Pass, frozen=True):
    """Run what is wide in the backward passes of stacks by chunks of the sequence."""

    name: ClassVar[str] = "chunk-backward"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "training"
    keeps: ClassVar[str] = "math"

    chunks: int = 1
    reduce: str = "f32"

    def run(self, program: Program, cx: Context) -> Program:
        """The program with a scan over chunks in each stack's backward body."""
        if self.chunks == 1:
            return program
        whole = program
        program, chunks, _ = in_chunks(program, self.chunks, self.reduce, "backward_chunks")
        before = program
        for name, width in backward_bodies(program).items():
            program = in_body(program.function(name), width, chunks, program)
        if program == before:
            cx.report(NothingToChunk(NOWHERE))
            return whole
        return program


def backward_bodies(program: Program) -> dict[str, int]:
    """The bodies of stacks' backward scans, with the elements of the widest forward carry."""
    found: dict[str, int] = {}
    for function in program.functions:
        for stack in stacks(function):
            there, back = (scan_of(function.ops[at]) for at in (stack.forward, stack.backward))
            body = program.function(there.function)
            carries = body.types[: there.carries]
            elements = [program.sizes.local_elements(kind) for kind in carries]
            found[back.function] = max(elements, default=0)
    return found


def in_body(body: Function, width: int, chunks: Chunks, program: Program) -> Program:
    """The program with one backward body run by chunks where its values are wide."""
    while True:
        found = mixers_before(body, chunks.dim)
        groups = [
            {at for at, mixers in found.items() if mixers == wanted}
            for wanted in dict.fromkeys(found.values())
        ]
        regions = (wide_region(body, group, width, chunks.dim, program) for group in groups)
        fit = [
            region
            for region in regions
            if worth_it(body, region, chunks.dim, program)
            and not obstacle(body, region, chunks.dim)
        ]
        if not fit:
            return program
        program = program.with_functions(*chunked(body, fit[0], chunks, program))
        body = program.function(body.name)


Mixers = frozenset[int]
"""The first results of the ops, before another one, that mix positions of the sequence."""


def mixers_before(body: Function, dim: str) -> dict[int, Mixers]:
    """By position of each op that works on positions alone: the mixing ops that lead to it."""
    behind: dict[int, Mixers] = {}
    found: dict[int, Mixers] = {}
    for at, op in enumerate(body.ops):
        before = Mixers().union(*(behind.get(value, Mixers()) for value in op.operands))
        kinds = [body.types[value] for value in (*op.operands, *op.results)]
        mixes = not isinstance(op.attrs, DIVISIBLE) and any(dim in kind.names for kind in kinds)
        if mixes:
            before = before | {op.results[0]}
        else:
            found[at] = before
        behind.update(dict.fromkeys(op.results, before))
    return found


def wide_region(
    body: Function, group: set[int], width: int, dim: str, program: Program
) -> set[int]:
    """The ops of the group that see wide values, and what lies between them."""

    def is_wide(value: int) -> bool:
        kind = body.types[value]
        return dim in kind.names and program.sizes.local_elements(kind) >= width

    seeds = {
        at
        for at in group
        if any(is_wide(value) for value in (*body.ops[at].operands, *body.ops[at].results))
    }
    if not seeds:
        return set()
    region = with_what_leads_to(body, between(body, seeds), is_wide)
    return with_what_follows(body, region, dim)


def with_what_leads_to(
    body: Function, region: set[int], is_wide: Callable[[int], bool]
) -> set[int]:
    """The region with ops that make wide values for it alone: they can wait for it."""
    found, uses = set(region), readers(body)
    for at in reversed(range(len(body.ops))):
        op = body.ops[at]
        waits = isinstance(op.attrs, DIVISIBLE) and any(map(is_wide, op.results))
        alone = all(v not in body.results and found.issuperset(uses[v]) for v in op.results)
        if at not in found and waits and alone:
            found.add(at)
    return found


def worth_it(body: Function, region: set[int], dim: str, program: Program) -> bool:
    """Whether more bytes stay within a region than are copied in and out along the dim."""
    if not region:
        return False
    through = flows(body, region, dim)
    made = {value for at in region for value in body.ops[at].results}
    size = program.sizes.local_bytes
    inside = sum(size(body.types[v]) for v in made.difference(through.stacked, through.sums))
    return inside > sum(size(body.types[v]) for v in (*through.dealt, *through.stacked))
