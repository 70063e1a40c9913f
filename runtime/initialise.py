"""The beginning of a run: every parameter and state by its name, the same on any mesh."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fllmc.ir.plan import Plan
from fllmc.ir.program import Parameter
from fllmc.runtime import randomness
from fllmc.runtime.coding import Read, blocks_of, fill_coded
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
        parameter, seed = executor.plan.program.parameter(part.stored.name), plan.train.seed
        init = parameter.init
        if parameter.holds:
            fill_coded(out, part, parameter, drawn(part, parameter, seed, out.device))
            continue
        randomness.fill_(out, init.kind, seed, part.name, part.shape, part.offsets, std=init.std)


def drawn(part: Part, parameter: Parameter, seed: int, device: torch.device) -> Read:
    """The initial values, in f32, of the parameter of which a part has codes or scales."""
    init, how = parameter.init, blocks_of(part, parameter)

    def read(slices: tuple[slice, ...]) -> Tensor:
        given = how.shape, slices, torch.float32, device
        return randomness.init_tensor(init.kind, seed, how.name, *given, std=init.std)

    return read
