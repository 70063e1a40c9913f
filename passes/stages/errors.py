"""What can be wrong with pipelines over a mesh axis, in words.

Codes E0510 to E0519.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Label
from fllmc.ir.span import Span


class StacksAlone(Diagnostic, frozen=True):
    """`shard layers over pipe` cuts the stack over `layers` into stages of a pipeline.

    That is another thing than dividing the values that have a dim, so a directive speaks of the
    dims of stacks or of other dims, not of both.
    """

    code: ClassVar[str] = "E0510"
    title: ClassVar[str] = "`{dim}` can't be divided in one directive with a stack"
    label: ClassVar[str] = "`{dim}` is the dim of no stack; {stacks} is"
    help: ClassVar[tuple[str, ...]] = ("write one directive for the stack and one for other dims",)

    dim: str
    stacks: str


class OneAxis(Diagnostic, frozen=True):
    """The stages of a pipeline lie along a single axis of the mesh."""

    code: ClassVar[str] = "E0511"
    title: ClassVar[str] = "stacks are cut over several axes: {axes}"
    label: ClassVar[str] = "a pipeline has one axis"

    axes: str


class TakenAxis(Diagnostic, frozen=True):
    """Along the axis of a pipeline ranks hold different layers, so it can divide nothing else."""

    code: ClassVar[str] = "E0512"
    title: ClassVar[str] = "`{axis}` is a pipeline's axis and can't divide {dims} too"
    label: ClassVar[str] = "`{axis}` is taken"

    axis: str
    dims: str
    other: Span

    def secondary(self) -> tuple[Label, ...]:
        """The pipeline's directive."""
        return (Label(self.other, "the pipeline is asked for here"),)


class NothingToCut(Diagnostic, frozen=True):
    """`pipeline` says in which order stages work; what is cut into stages, a directive says.

    A pipeline is the dim of a stack on an axis of the mesh: `shard layers over pipe`.
    """

    code: ClassVar[str] = "E0514"
    title: ClassVar[str] = "`pipeline: {kind}` orders stages, and no directive makes any"
    label: ClassVar[str] = "nothing is cut into stages"

    kind: str
    stacks: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The directive for the model's stack."""
        return tuple(f"add `shard {stack} over AXIS`" for stack in self.stacks[:1])


class TooManyStages(Diagnostic, frozen=True):
    """Every stage of a pipeline needs a layer, or what stands before or behind the stacks."""

    code: ClassVar[str] = "E0513"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "{stages} stages can't be made of {units} layers and ends"
    label: ClassVar[str] = "more stages than there is to cut"

    stages: int
    units: int

    def helps(self) -> tuple[str, ...]:
        """What works."""
        return (f"ranks times chunks can be at most {self.units}",)


class SharedDim(Diagnostic, frozen=True):
    """The stages of a pipeline know layers by their positions along a stack's dim.

    Two stacks over one dim, or one that is run twice, would have the same positions at two places
    of the model.
    """

    code: ClassVar[str] = "E0515"
    title: ClassVar[str] = "two stacks run over `{dim}`, so its layers can't be cut into stages"
    label: ClassVar[str] = "`{dim}` is two stacks' dim"
    help: ClassVar[tuple[str, ...]] = (
        "give the second stack a dim of its own and write `shard ({dim}, OTHER) over ...`",
    )

    dim: str
