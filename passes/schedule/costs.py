"""What the pieces of a pipeline step cost, as generators and the simulator reckon."""

from __future__ import annotations

import msgspec


class Costs(msgspec.Struct, frozen=True):
    """Times and memory of each stage for one micro-batch; any units, as long as they agree.

    `forward`, `input` and `weight` are times of F, I and W (a B takes both), `transfer` of handing
    a value to another rank. `kept` is the memory that F takes and the backward gives back, `late`
    the part of it that I leaves for W to give back.
    """

    forward: tuple[float, ...]
    input: tuple[float, ...]
    weight: tuple[float, ...]
    kept: tuple[float, ...]
    late: tuple[float, ...]
    transfer: float = 0.0

    def time(self, kind: str, stage: int) -> float:
        """The time of one action."""
        if kind == "F":
            return self.forward[stage]
        if kind == "W":
            return self.weight[stage]
        return self.input[stage] + (self.weight[stage] if kind == "B" else 0.0)

    def memory(self, kind: str, stage: int) -> float:
        """What an action adds to the memory of its rank; I and W give back."""
        if kind == "F":
            return self.kept[stage]
        if kind == "W":
            return -self.late[stage]
        return (self.late[stage] if kind == "I" else 0.0) - self.kept[stage]


def uniform(
    stages: int,
    forward: float = 1.0,
    input: float = 1.0,
    weight: float = 1.0,
    transfer: float = 0.0,
    late: float = 0.5,
) -> Costs:
    """Costs that are alike on all stages; one micro-batch keeps one unit of memory."""
    return Costs(
        (forward,) * stages,
        (input,) * stages,
        (weight,) * stages,
        (1.0,) * stages,
        (late,) * stages,
        transfer,
    )
