"""What can be wrong with `quantize` directives, in words. Codes E0381 to E0384."""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Label
from fllmc.ir.span import NOWHERE, Span


class QuantizedTrains(Diagnostic, frozen=True):
    """A `quantize` directive selects a parameter that trains.

    Steps are far smaller than the distance of two codes, so a parameter stored in few bits would
    not move. What trains beside a quantised base are low-rank updates.
    """

    code: ClassVar[str] = "E0381"
    title: ClassVar[str] = "`{parameter}` trains, so it can't be quantised"
    label: ClassVar[str] = "`{selector}` selects it"
    help: ClassVar[tuple[str, ...]] = (
        "freeze it, leave it out of this selector, or let `lora` train beside it",
    )

    parameter: str
    selector: str
    origin: Span = NOWHERE

    def secondary(self) -> tuple[Label, ...]:
        """Where the parameter is declared."""
        if self.origin == NOWHERE:
            return ()
        return (Label(self.origin, f"`{self.parameter}` is declared here, and not frozen"),)


class BlocksDoNotFit(Diagnostic, frozen=True):
    """A parameter can't be cut into blocks of the size that a `quantize` directive says.

    Each block has a scale of its own, and lies along one dim of the parameter, which it divides.
    """

    code: ClassVar[str] = "E0382"
    title: ClassVar[str] = "`{parameter}` can't be cut into blocks of {block}: {why}"
    label: ClassVar[str] = "blocks of {block}"

    parameter: str
    block: int
    why: str
    dims: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The sizes that a block has to divide."""
        return (f"choose a `block` that divides one of {', '.join(self.dims)}",)


class NothingQuantized(Diagnostic, frozen=True):
    """A `quantize` selector matches no linear map.

    Parameters declared with an arrow, `wq: embed -> (heads, head_dim)`, are quantised; plain
    tensors, such as the scale of a norm, are small and stay as they are.
    """

    code: ClassVar[str] = "E0383"
    title: ClassVar[str] = "`quantize {selector}` matches no linear map"
    label: ClassVar[str] = "nothing is selected"

    selector: str


class BlocksApart(Diagnostic, frozen=True):
    """A directive divides a dim so that blocks of a quantised parameter would lie on two ranks.

    A rank holds the scales of its own codes, so the ranks along an axis share out whole blocks.
    """

    code: ClassVar[str] = "E0384"
    title: ClassVar[str] = (
        "axis `{axis}` of size {extent} does not divide the {blocks} blocks along `{dim}`"
    )
    label: ClassVar[str] = "`{dim}` is divided over `{axis}` here"
    help: ClassVar[tuple[str, ...]] = (
        "quantize with a smaller `block`, or with `along:` a dim that is not divided so",
    )

    dim: str
    blocks: int
    axis: str
    extent: int
