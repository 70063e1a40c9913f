"""What waits in host memory between the forward and the backward scan of a stack.

A scan's stacked result is there if the body gives it by `to_host` and every use of it is a slice of
a scan whose body takes it by `from_host` alone. The two scans stand in one function, or in two that
are the forward and the backward of a stage of a pipeline.
"""

from __future__ import annotations

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
    """The stacked results that a scan's turns give by `to_host`."""
    count = len(program.function(attrs.function).results)
    found: list[int] = []
    for number, value in enumerate(op.results[attrs.carries :], attrs.carries):
        name, own = attrs.giver(number, count)
        function = program.function(name)
        made = maker(function, function.results[own])
        carried = (
            name == attrs.function and function.results[own] in function.results[: attrs.carries]
        )
        if made is not None and isinstance(made.attrs, ToHost) and not carried:
            found.append(value)
    return found


def maker(function: Function, value: int) -> Op | None:
    """The op that makes a value, started or not; None for an input."""
    for op in function.ops:
        if value in op.results:
            waited = isinstance(op.attrs, Wait)
            return maker(function, op.operands[op.results.index(value)]) if waited else op
    return None


def taken(op: Op, value: int, program: Program) -> bool:
    """Whether the op is a scan whose turns take the value by `from_host` alone."""
    if not isinstance(op.attrs, Scan):
        return False
    attrs = op.attrs
    places = [at for at, operand in enumerate(op.operands) if operand == value]
    slices = range(attrs.carries, attrs.carries + attrs.slices)
    takers = [attrs.taker(at) for at in places]
    return all(at in slices for at in places) and all(
        number not in program.function(name).results
        and all(isinstance(u.attrs, FromHost) for u in uses(program.function(name), number))
        for name, number in takers
    )


def gives_away(function: Function, name: str, program: Program) -> bool:
    """Whether a function gives a result for host memory: made there by a scan, and used no more."""
    value = function.results[function.outputs.index(name)]
    made = maker(function, value)
    return (
        made is not None
        and isinstance(made.attrs, Scan)
        and value in given(made, made.attrs, program)
        and function.results.count(value) == 1
        and not uses(function, value)
    )


def takes_back(function: Function, name: str, program: Program) -> bool:
    """Whether a function takes an input of host memory: by scans that copy it back alone."""
    value = [each.name for each in function.inputs].index(name)
    readers = uses(function, value)
    return value not in function.results and all(taken(op, value, program) for op in readers)
