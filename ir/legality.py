"""Which ops each level of the IR may hold: all but those listed, each with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fllmc.ir.ops import (
    COLLECTIVES,
    AttendGrad,
    Attrs,
    Bucketed,
    Call,
    ConvInput,
    ConvWeight,
    Fused,
    LocalSlice,
    Pipeline,
    RecurGrad,
    Share,
    Wait,
)
from fllmc.ir.program import Level

_UNPLACED: Final[Mapping[type[Attrs], str]] = dict.fromkeys(
    (*COLLECTIVES, LocalSlice, Pipeline, Share, Wait),
    "values are not placed yet, so there is nothing to move",
)
_FUSED_LATER: Final[Mapping[type[Attrs], str]] = dict.fromkeys(
    (Bucketed, Fused), "groups are formed with the plan"
)
_INLINED: Final[Mapping[type[Attrs], str]] = {
    Call: "calls are inlined, so that passes see a block's ops"
}

FORBIDDEN: Final[Mapping[Level, Mapping[type[Attrs], str]]] = {
    "model": {
        **_UNPLACED,
        **_FUSED_LATER,
        **dict.fromkeys(
            (AttendGrad, ConvInput, ConvWeight, RecurGrad),
            "a model says what is computed, not its gradient",
        ),
    },
    "training": {**_UNPLACED, **_FUSED_LATER, **_INLINED},
    "sharded": {**_FUSED_LATER, **_INLINED},
    "plan": _INLINED,
}


def objection(level: Level, attrs: Attrs) -> str | None:
    """Why the level may not hold such an op, or None when it may."""
    return FORBIDDEN[level].get(type(attrs))
