"""What it costs that each turn of a pipeline casts the weights that it reads, and keeps no copy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from fllmc.ir.ops import Cast, Pipeline, Scan
from fllmc.ir.program import Function, Program
from fllmc.ir.target import Target


class Casts(NamedTuple):
    """Bytes of a rank that copies for one step would take, and the seconds of a step that casts
    beyond one of each take."""

    bytes: int
    seconds: float


class Seen(NamedTuple):
    """One cast of a parameter: its name, and the bytes that it reads and writes for all layers."""

    name: str
    read: int
    written: int


def weight_casts(program: Program, entry: str, target: Target) -> Casts:
    """Of a rank's turns in an entry."""
    counts: Counter[str] = Counter()
    functions: dict[str, Function] = {}
    for op in program.function(entry).ops:
        if isinstance(op.attrs, Pipeline):
            counts.update(action.partition(".")[0] for action in op.attrs.actions)
            functions |= {key: program.function(name) for key, name in op.attrs.functions}
    copies: dict[str, int] = {}
    moved = 0
    for key, function in functions.items():
        params = {n: i.name for n, i in enumerate(function.inputs) if i.role == "param"}
        for seen in casts_of(program, function, params):
            again = counts[key] - (0 if seen.name in copies else 1)
            copies.setdefault(seen.name, seen.written)
            moved += again * (seen.read + seen.written)
    return Casts(sum(copies.values()), moved / (target.memory_gbps * 1e9))


def casts_of(program: Program, function: Function, params: dict[int, str]) -> Iterator[Seen]:
    """The casts of parameters in one run of a function; `params` are their values' names."""
    sizes = program.sizes
    for op in function.ops:
        if isinstance(op.attrs, Cast) and op.operands[0] in params:
            read, written = (
                sizes.local_bytes(function.types[v]) for v in (*op.operands, *op.results)
            )
            yield Seen(params[op.operands[0]], read, written)
        if isinstance(op.attrs, Scan):
            inner = program.function(op.attrs.function)
            given = {n: params[v] for n, v in enumerate(op.operands) if v in params}
            layers = sizes.size(op.attrs.over)
            for seen in casts_of(program, inner, given):
                yield Seen(seen.name, layers * seen.read, layers * seen.written)
