"""The rule of a bucketed op: its work on an element needs no other element, but for sums of all."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.ops import Bucketed, Elementwise, ReduceSum
from fllmc.ir.program import Function


def bucket_faults(function: Function, attrs: Bucketed) -> Iterator[str]:
    """What is wrong with the function that a bucketed op runs, beside its signature."""
    sums: set[int] = set()
    for op in function.ops:
        used = sums.intersection(op.operands)
        if used:
            yield f"{function.name} uses %{min(used)}, a sum over a part of the bucket"
        if isinstance(op.attrs, ReduceSum):
            sums.update(op.results)
        elif not isinstance(op.attrs, Elementwise):
            yield f"{op.kind} in {function.name} is not elementwise"
    for given in sorted(set(function.results)):
        if given not in sums and not function.types[given].dims:
            yield f"{function.name} gives %{given}, which is no sum over the bucket"
