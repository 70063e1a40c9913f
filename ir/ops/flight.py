"""Work beside work: what may be started early, and the op that waits for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from fllmc.ir.ops.base import Attrs, Env, require
from fllmc.ir.ops.collective import AllGather, AllReduce, AllToAll, Coalesced, ReduceScatter
from fllmc.ir.ops.structure import FromHost, ToHost
from fllmc.ir.types import Type


class Wait(Attrs, frozen=True, tag="wait"):
    """The results of one collective or host copy, once they are there.

    Its operands are all the results of that op, which is started where it stands and runs beside
    the ops between. Until then its results are pending: nothing else may take them. An op that
    nothing waits for is done where it stands.
    """

    arity = -1

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(len(operands) > 0, "nothing to wait for")
        return tuple(operands)


STARTABLE: Final = (AllGather, AllReduce, AllToAll, Coalesced, FromHost, ReduceScatter, ToHost)
"""Ops that may run beside others."""
