"""Questions about functions that several stages ask."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from fllmc.ir.ops import Elementwise, Fill, Pipeline, Scan, Wait
from fllmc.ir.program import Function, Op
from fllmc.ir.types import HOST_SCALAR, Sizes, Type

HOST_TYPES: Final = (HOST_SCALAR, Type("bool"))


def host_values(function: Function) -> set[int]:
    """Values that are Python numbers at run time: host inputs, constants, what follows from them.

    They have no dims and are f64, or bool where such are compared.
    """
    found = {number for number, given in enumerate(function.inputs) if given.role == "host"}
    for op in function.ops:
        if not isinstance(op.attrs, Elementwise | Fill):
            continue
        scalar = all(function.types[value] in HOST_TYPES for value in op.results)
        if scalar and all(value in found for value in op.operands):
            found.update(op.results)
    return found


def waits(function: Function) -> dict[int, int]:
    """By the position of each wait that of the op that it waits for, which is started."""
    makers = {value: at for at, op in enumerate(function.ops) for value in op.results}
    return {
        at: makers[op.operands[0]]
        for at, op in enumerate(function.ops)
        if isinstance(op.attrs, Wait) and op.operands[0] in makers
    }


def calls_of(op: Op, sizes: Sizes) -> Iterator[tuple[str, int]]:
    """The functions that an op runs, each with how often."""
    match op.attrs:
        case Pipeline(functions=functions, actions=actions):
            for key, name in functions:
                yield name, sum(action.partition(".")[0] == key for action in actions)
        case Scan(over=over, final=final) as scan:
            turns = sizes.size(over) - bool(final)
            for name in scan.functions:
                if name == final or turns:
                    yield name, 1 if name == final else turns
        case _:
            if name := getattr(op.attrs, "function", ""):
                yield name, 1
