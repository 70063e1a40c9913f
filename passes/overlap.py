"""overlap: plan -> plan. Collectives and host copies run beside computation.

    %3 = all_gather{dim=embed,axes=[fsdp]}(%1); %4 = exp(%0); %5 = dot{contract=[embed]}(%4, %3)
    ->
    %3 = all_gather{dim=embed,axes=[fsdp]}(%1); %4 = exp(%0); %5 = wait(%3); %6 = dot{...}(%4, %5)

Transfers of a stack's layer run beside its other layers, unless `stacks` is off: see
`passes/prefetch.py`. Where others are started and waited for stands in `passes/flights.py`. The
numbers stay the same to the last bit. Ops take as long as `passes/roofline.py` says of the
`target`. No more than `in_flight_mib` MiB are taken and given by what is in flight at once in a
function, or are there twice so that they can pass between the layers of a stack.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.program import Level, Program
from fllmc.ir.target import Target
from fllmc.passes.base import Context, Pass
from fllmc.passes.exposure import transfer_decisions
from fllmc.passes.flights import with_flights
from fllmc.passes.prefetch import prefetched
from fllmc.passes.roofline import times


class Overlap(Pass, frozen=True):
    """Start transfers early, wait for them late; nothing without a target."""

    name: ClassVar[str] = "overlap"
    takes: ClassVar[Level] = "plan"
    gives: ClassVar[Level] = "plan"
    keeps: ClassVar[str] = "bits"

    in_flight_mib: int = 4096
    stacks: bool = True
    target: Target | None = None

    def run(self, program: Program, cx: Context) -> Program:
        """Rewrite every function."""
        if self.target is None:
            return program
        limit, target = self.in_flight_mib << 20, self.target
        if self.stacks:
            program = prefetched(program, limit)
        program = program.with_functions(
            *(
                with_flights(each, program, times(program, each, target), limit)
                for each in program.functions
            )
        )
        for decision in transfer_decisions(program, target, limit):
            cx.decide(decision)
        return program
