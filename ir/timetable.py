"""A pipeline schedule as data: which rank does what in which order.

The model is cut into `stages`, numbered in the order of the forward pass; each lives on one of the
`ranks` of the pipeline axis, and a rank may have several (its chunks). A step takes every stage
through every micro-batch: forward, backward to its input, and gradients of its weights.
"""

from __future__ import annotations

from typing import Literal

import msgspec

Kind = Literal["F", "B", "I", "W"]
"""Forward; backward for input and weights at once; for the input alone; for the weights alone."""


class Action(msgspec.Struct, frozen=True, order=True, gc=False):
    """One piece of work: `kind` for stage `stage` and micro-batch `micro`, both from 0."""

    kind: Kind
    stage: int
    micro: int

    def __str__(self) -> str:
        return f"{self.kind}{self.stage}.{self.micro}"


class Timetable(msgspec.Struct, frozen=True):
    """The rows of a schedule: `rows[rank]` is the order of that rank's work.

    `homes[stage]` is the rank on which a stage lives.
    """

    name: str
    ranks: int
    stages: int
    micros: int
    homes: tuple[int, ...]
    rows: tuple[tuple[Action, ...], ...]


class Timed(msgspec.Struct, frozen=True):
    """An action on the timeline of a rank, from `begin` to `end` in any unit."""

    rank: int
    action: Action
    begin: float
    end: float
