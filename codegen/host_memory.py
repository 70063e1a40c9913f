"""Where each value is that waits in host memory: every one has a stretch of its own."""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.codegen.offloaded import offloaded
from fllmc.codegen.offsets import aligned
from fllmc.codegen.turns import Turns
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Function, Program

Held = tuple[str, int | tuple[str, int]]
"""A function, and a value of it, or a port of its pipeline op with the number of its buffer."""


def value_places(program: Program) -> tuple[dict[Held, int], int]:
    """The offset in host memory of each value that waits there within its function, and the end."""
    found: dict[Held, int] = {}
    end = 0
    for function in program.functions:
        for value in offloaded(function, program):
            found[function.name, value] = end
            end += aligned(program.sizes.local_bytes(function.types[value]))
    return found, end


def host_places(program: Program) -> tuple[Mapping[Held, int], int]:
    """The offset in host memory of everything that waits there, and the bytes of all."""
    found, end = value_places(program)
    for function in program.functions:
        for op in function.ops:
            if isinstance(op.attrs, Pipeline):
                for name, kind, slots in Turns(program, op.attrs).waiting():
                    for slot in range(slots):
                        found[function.name, (name, slot)] = end
                        end += aligned(program.sizes.local_bytes(kind))
    return found, end


def away_from(function: Function, program: Program) -> dict[int, int]:
    """The offset in host memory of each value of the function that waits there."""
    places, _ = value_places(program)
    return {
        value: at
        for (name, value), at in places.items()
        if name == function.name and isinstance(value, int)
    }


def host_bytes(program: Program) -> int:
    """Bytes of host memory that a rank needs."""
    return host_places(program)[1]
