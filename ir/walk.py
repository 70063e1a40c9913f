"""Questions about functions that several stages ask."""

from __future__ import annotations

from fllmc.ir.ops import Elementwise, Fill
from fllmc.ir.program import Function
from fllmc.ir.types import HOST_SCALAR


def host_values(function: Function) -> set[int]:
    """Values that are Python floats at run time: host inputs, constants, and what follows from them."""
    found = {number for number, given in enumerate(function.inputs) if given.role == "host"}
    for op in function.ops:
        if not isinstance(op.attrs, Elementwise | Fill):
            continue
        scalar = all(function.types[value] == HOST_SCALAR for value in op.results)
        if scalar and all(value in found for value in op.operands):
            found.update(op.results)
    return found
