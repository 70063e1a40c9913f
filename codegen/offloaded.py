"""What waits in host memory between the forward and the backward scan of a stack, and where.

A scan's stacked result is there if the body gives it by `to_host` and every use of it is a slice of
a scan whose body takes it by `from_host` alone. Each such value has a stretch of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.codegen.offsets import aligned
from fllmc.ir.ops import FromHost, Scan, ToHost, Wait
from fllmc.ir.program import Function, Op, Program


def offloaded(function: Function, program: Program) -> tuple[int, ...]:
    """The values of a function that wait in host memory."""
    found = [
        value
        for op in function.ops
        if isinstance(op.attrs, Scan)
        for value in given(op, op.attrs, program)
        if value not in function.results
    ]
    return tuple(v for v in found if all(taken(op, v, program) for op in uses(function, v)))


def uses(function: Function, value: int) -> list[Op]:
    """The ops that take the value."""
    return [op for op in function.ops if value in op.operands]


def given(op: Op, attrs: Scan, program: Program) -> list[int]:
    """The stacked results that a scan's body gives by `to_host`."""
    body = program.function(attrs.function)
    away: set[int] = set()
    for inner in body.ops:
        waited = isinstance(inner.attrs, Wait) and away.issuperset(inner.operands)
        if waited or isinstance(inner.attrs, ToHost):
            away.update(inner.results)
    away.difference_update(body.results[: attrs.carries])
    return [value for value, inner in zip(op.results, body.results, strict=True) if inner in away]


def taken(op: Op, value: int, program: Program) -> bool:
    """Whether the op is a scan whose body takes the value by `from_host` alone."""
    if not isinstance(op.attrs, Scan):
        return False
    attrs, body = op.attrs, program.function(op.attrs.function)
    places = [at for at, operand in enumerate(op.operands) if operand == value]
    slices = range(attrs.carries, attrs.carries + attrs.slices)
    return all(
        at in slices
        and at not in body.results
        and all(isinstance(inner.attrs, FromHost) for inner in uses(body, at))
        for at in places
    )


def host_places(program: Program) -> tuple[Mapping[tuple[str, int], int], int]:
    """The offset in host memory of every value that waits there, and the bytes of all."""
    found: dict[tuple[str, int], int] = {}
    end = 0
    for function in program.functions:
        for value in offloaded(function, program):
            found[function.name, value] = end
            end += aligned(program.sizes.local_bytes(function.types[value]))
    return found, end


def away_from(function: Function, program: Program) -> dict[int, int]:
    """The offset in host memory of each value of the function that waits there."""
    places = host_places(program)[0]
    return {value: at for (name, value), at in places.items() if name == function.name}


def host_bytes(program: Program) -> int:
    """Bytes of host memory that a rank needs."""
    return host_places(program)[1]
