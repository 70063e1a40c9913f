"""The loss over the whole held-out part."""

from __future__ import annotations

import torch

from fllmc.ir.plan import Plan
from fllmc.runtime.communicator import Communicator
from fllmc.runtime.data.dataset import Validation
from fllmc.runtime.executor import Executor
from fllmc.runtime.feeding import Feeder

ENTRY = "evaluate"


class Evaluation:
    """The `evaluate` entry on one rank, fed with all held-out samples in order."""

    def __init__(
        self,
        plan: Plan,
        executor: Executor,
        held_out: Validation,
        rank: int,
        comm: Communicator | None,
    ) -> None:
        self.plan, self.executor, self.held_out, self.comm = plan, executor, held_out, comm
        self.feeder = Feeder(plan, executor, ENTRY, rank)

    def loss(self) -> float:
        """Nats per held-out token: the sum over all batches through the count of all."""
        total = count = 0.0
        for first in range(0, self.held_out.samples, self.feeder.layout.samples):
            self.feeder.fill(first, self.held_out.batch)
            self.executor.run(ENTRY, seed=self.plan.train.seed)
            total += self._whole("loss")
            count += self._whole("count")
        return total / count

    def _whole(self, name: str) -> float:
        """An output without dims, combined over the ranks where it is still partial."""
        value = self.executor.tensor(name)
        kind = self.executor.description(name).type
        if self.comm and kind.partial:
            value = value.clone()
            self.comm.all_reduce(kind.partial, value, kind.combine).wait()
        return float(value.item())


def evaluation(
    plan: Plan,
    executor: Executor,
    held_out: Validation | None,
    rank: int,
    comm: Communicator | None,
) -> Evaluation | None:
    """The evaluation, or None where nothing is held out or the plan has no such entry."""
    if held_out is None or ENTRY not in plan.program.entries:
        return None
    with torch.no_grad():
        return Evaluation(plan, executor, held_out, rank, comm)
