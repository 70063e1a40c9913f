"""What a step leaves in a state: a value that the backward pass gives as if a gradient."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.ops.base import Attrs, Env, require
from fllmc.ir.types import Type


class Record(Attrs, frozen=True, tag="record"):
    """Zero, whose gradient to the state is the value: (state[dims], value[dims]) -> [].

    Whatever the result's cotangent is, the gradient is the value itself. So gradients, which are
    summed over micro-batches and devices, hold the sum of the value over a step. Neither operand is
    read before that, so they may be placed in any way.
    """

    arity = 2

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        state, value = operands
        fits = sorted(state.names) == sorted(value.names) and state.dtype == value.dtype
        require(fits, f"{value} is not of the state {state}")
        return (Type(state.dtype, ()),)
