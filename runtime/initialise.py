"""The beginning of a run: every parameter and state by its name, the same on any mesh."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from fllmc.ir.plan import Plan
from fllmc.runtime import randomness
from fllmc.runtime.executor import Executor
from fllmc.runtime.parts import Part


def view_of(part: Part, executor: Executor) -> Tensor:
    """The part's place in the arena."""
    whole = executor.tensor(part.stored.name)
    whole = whole if part.layer is None else whole[part.layer]
    return whole.narrow(0, part.row, part.local[0]) if part.local else whole


def initialise(plan: Plan, executor: Executor, parts: Sequence[Part]) -> None:
    """Fill parameters as the spec says and states with what their optimizer begins with."""
    for part in parts:
        out = view_of(part, executor)
        if part.stored.role == "state":
            out.fill_(part.stored.initial)
            continue
        init = executor.plan.program.parameter(part.stored.name).init
        seed = plan.train.seed
        randomness.fill_(out, init.kind, seed, part.name, part.shape, part.offsets, std=init.std)
