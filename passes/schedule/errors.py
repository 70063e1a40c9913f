"""What can be wrong with pipeline schedules, in words.

Codes E0521 to E0529, E0421 and E0422, and E0841.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic


class NotInGroups(Diagnostic, frozen=True):
    """The interleaved schedule takes micro-batches through the chunks in groups of one per rank.

    So the number of micro-batches has to be a multiple of the ranks of the pipeline
    (Narayanan et al. 2021, section 2.2.2).
    """

    code: ClassVar[str] = "E0521"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = (
        "`interleaved` on {ranks} ranks needs a multiple of {ranks} micro-batches, not {micros}"
    )

    ranks: int
    micros: int

    def helps(self) -> tuple[str, ...]:
        """The next number of micro-batches that works."""
        works = -(-self.micros // self.ranks) * self.ranks
        return (f"set `microbatches: {works}` in the schedule",)


class NoSuchChunks(Diagnostic, frozen=True):
    """Some schedules give each rank one stage, `zb_v` gives it two, others as many as one likes."""

    code: ClassVar[str] = "E0522"
    title: ClassVar[str] = "`{kind}` gives each rank {wanted}, not {chunks}"
    help: ClassVar[tuple[str, ...]] = (
        "`interleaved` and `breadth_first` take any number of chunks",
    )

    kind: str
    wanted: str
    chunks: int


class TooLittleMemory(Diagnostic, frozen=True):
    """No order of work keeps within the memory that the schedule allows.

    `memory` counts activations in those that the first stage of 1F1B keeps: one for each rank. With
    less than one micro-batch's there is no order at all.
    """

    code: ClassVar[str] = "E0421"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "no schedule keeps within {memory:g} of what 1F1B keeps: {short:g} short"
    help: ClassVar[tuple[str, ...]] = ("`memory: {needed:g}` is the least that works",)

    memory: float
    needed: float
    short: float


class KeepsMore(Diagnostic, frozen=True):
    """A published schedule keeps what it keeps, and that is more than `memory` allows.

    `memory` counts activations in those that the first stage of 1F1B keeps: one for each rank.
    """

    code: ClassVar[str] = "E0422"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "`{kind}` keeps {kept:g} of what 1F1B keeps: {over:g} over {memory:g}"
    help: ClassVar[tuple[str, ...]] = (
        "`auto(memory: {memory:g})` looks for an order that keeps within it",
    )

    kind: str
    kept: float
    over: float
    memory: float


class NothingToSearch(Diagnostic, frozen=True):
    """`exact` looks for the best of all orders; a schedule with a name of its own is one order."""

    code: ClassVar[str] = "E0524"
    title: ClassVar[str] = "`{kind}` is one order of work, so there is nothing `exact` to find"
    help: ClassVar[tuple[str, ...]] = ("`auto` looks for the best order",)

    kind: str


class NoSolver(Diagnostic, frozen=True):
    """The exact search for an order of work is done by OR-tools, which is not installed by default.

    Without `exact`, orders are made by rules, and the best of many is taken.
    """

    code: ClassVar[str] = "E0841"
    title: ClassVar[str] = "`exact` needs OR-tools, and it is not installed"
    help: ClassVar[tuple[str, ...]] = ("`pip install 'fllmc[solver]'` installs it",)


class NoSuchSchedule(Diagnostic, frozen=True):
    """Pipeline schedules go by the names under which they were published."""

    code: ClassVar[str] = "E0523"
    title: ClassVar[str] = "there is no pipeline schedule `{name}`"
    help: ClassVar[tuple[str, ...]] = ("known are {known}",)

    name: str
    known: str
