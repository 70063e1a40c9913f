"""A parameter as a matrix, as optimizers that mix elements see it.

Of its two sides, what a map takes and what it gives, `short` is the smaller one and `long` the
larger; with equal sizes `short` is what it takes. `twin` is `short` under another name. Of a plain
tensor the last two dims are the sides. A vector has `long` alone. All other dims, as that of a
stack, number matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Final

import msgspec

from fllmc.ir.program import Parameter
from fllmc.ir.types import Sizes

SIDES: Final = ("optimizer.short", "optimizer.long", "optimizer.twin")
"""The dims of an optimizer's equations; each stands for none, one or several of a parameter's."""
SIZES: Final = ("short", "long", "twin", "inputs", "outputs", "matrix")
"""The numbers that such equations are given beside the rate and the step."""
TWIN: Final = ".twin"
"""Ends the second name of a dim."""


def side(name: str) -> str:
    """The dim by which an optimizer's equations name a side; no dim of a model has a dot."""
    return f"optimizer.{name}"


GROUPS: Final = "optimizer.group"
"""Begins the names of the equations of further optimizers: `optimizer.group1.rate`."""


class Matrix(msgspec.Struct, frozen=True):
    """The dims of a parameter's sides, what it takes first; a vector takes nothing."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    turned: bool

    @property
    def sides(self) -> Mapping[str, tuple[str, ...]]:
        """The dims that each of `SIDES` stands for."""
        short, long = (self.outputs, self.inputs) if self.turned else (self.inputs, self.outputs)
        return dict(zip(SIDES, (short, long, tuple(name + TWIN for name in short)), strict=True))

    def numbers(self, sizes: Sizes) -> dict[str, float]:
        """The values of `SIZES`."""
        inputs, outputs = (
            float(prod(sizes.size(name) for name in names)) for names in (self.inputs, self.outputs)
        )
        short, long = min(inputs, outputs), max(inputs, outputs)
        truth = float(bool(self.inputs))
        return dict(zip(SIZES, (short, long, short, inputs, outputs, truth), strict=True))


def matrix_of(parameter: Parameter, sizes: Sizes) -> Matrix:
    """The sides of a parameter."""
    own = parameter.type.names[1 if parameter.stack else 0 :]
    if parameter.takes:
        inputs, outputs = own[: parameter.takes], own[parameter.takes :]
    else:
        inputs, outputs = own[-2:-1], own[-1:]
    size_in, size_out = (prod(sizes.size(name) for name in each) for each in (inputs, outputs))
    return Matrix(inputs, outputs, bool(inputs) and size_in > size_out)


def state_key(group: int, state: str) -> str:
    """The output of `optimizer.states` that says what a state of a group begins with."""
    return f"group{group}.{state}" if group else state


def equations_of(group: int, what: str = "") -> str:
    """The name of a group's `optimizer`, of its `no_decay`, or of its `rate`."""
    if not group:
        return "rate" if what == "rate" else f"optimizer.{what}" if what else "optimizer"
    return f"{GROUPS}{group}.{what}" if what else f"{GROUPS}{group}"
