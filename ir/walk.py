"""Questions about functions that several stages ask."""

from __future__ import annotations

from typing import Final

from fllmc.ir.ops import Elementwise, Fill
from fllmc.ir.program import Function
from fllmc.ir.types import HOST_SCALAR, Type

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
