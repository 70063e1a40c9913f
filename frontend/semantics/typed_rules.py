"""Typed optimizers and rates."""

from __future__ import annotations

from msgspec import Struct

from fllmc.frontend.semantics.typed import Step, Typed
from fllmc.ir.span import Span


class Repeat(Struct, frozen=True):
    """Equations of an optimizer that are done so many times, one after the other."""

    times: Typed
    steps: tuple[Step | Repeat, ...]


class State(Struct, frozen=True):
    """What an optimizer keeps: what it begins with, and which dims of the parameter it has."""

    name: str
    start: float
    dims: tuple[str, ...]


class RuleParameter(Struct, frozen=True):
    """A parameter of an optimizer or rate; `parts` names the items of a tuple argument."""

    name: str
    parts: tuple[str, ...]
    default: tuple[float, ...] | None
    truth: bool
    span: Span


class Rule(Struct, frozen=True):
    """A typed optimizer or rate: over host numbers, or over a parameter as a matrix if it `mixes`.

    One that mixes no elements says what is done to each alone.
    """

    name: str
    parameters: tuple[RuleParameter, ...]
    states: tuple[State, ...]
    steps: tuple[Step | Repeat, ...]
    returned: Typed | None
    span: Span
    mixes: bool = False
