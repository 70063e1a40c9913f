"""What the checker says of `checkpoint` sections."""

from __future__ import annotations

from typing import ClassVar

from fllmc.frontend.errors import Explained, Named
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.span import Span


class UnknownPlace(Named, frozen=True):
    """A line of a `checkpoint` section names no parameter of its model or block.

    A place is the path of a parameter, with an index behind each stack: `body[i].attn.wq`. Further
    indices behind the parameter count along its first dims, as `experts.up[e]`.
    """

    code: ClassVar[str] = "E0286"
    title: ClassVar[str] = "`{place}` is no {what} of `{subject}`"
    label: ClassVar[str] = "{reason}"

    place: str = ""
    subject: str = ""
    reason: str = ""
    what: str = "parameter"


class NotCovered(Diagnostic, frozen=True):
    """A parameter has no name in a foreign format, or some of its layers or parts have none.

    A `checkpoint` section must cover every parameter exactly once, so that nothing is lost in
    either direction.
    """

    code: ClassVar[str] = "E0287"
    title: ClassVar[str] = "checkpoint `{name}` does not cover {what} of `{subject}`"
    label: ClassVar[str] = "{missing} missing here"
    help: ClassVar[tuple[str, ...]] = ('add `{place} <-> "NAME" : [{dims}]`',)

    name: str
    subject: str
    what: str
    missing: str
    place: str
    dims: str


class CoveredTwice(Explained, frozen=True):
    """Two lines of a `checkpoint` section speak of one parameter, or of one foreign tensor.

    Several foreign names for one parameter are written in one line: `embedding <-> "a" = "b"`.
    Several parameters in one foreign tensor are too:
    `{gate, up} <-> "gate_up" : [ffn + ffn, embed]`.
    """

    code: ClassVar[str] = "E0282"
    title: ClassVar[str] = "{what} `{name}` is covered twice"
    label: ClassVar[str] = "second time"
    because: ClassVar[str] = "first here"

    what: str
    name: str
    origin: Span


class LayoutDiffers(Diagnostic, frozen=True):
    """A layout must speak of each dim of its parameter exactly once, in the foreign tensor's order.

    Several dims in one stand in parentheses, `[(heads head_dim), embed]`; what several parameters
    have one behind the other is a sum, `[ffn + ffn, embed]`. Where a map has one dim on both sides,
    `in.embed` and `out.embed` say which is meant.
    """

    code: ClassVar[str] = "E0283"
    title: ClassVar[str] = "this is no layout of `{parameter}`: {reason}"
    label: ClassVar[str] = "{reason}"
    note: ClassVar[tuple[str, ...]] = ("`{parameter}` has [{dims}]",)

    parameter: str
    reason: str
    dims: str


class BadForeignName(Diagnostic, frozen=True):
    """A foreign name has numbers in braces: sums and products of the line's indices and of dims.

    `"model.layers.{i}.mlp.up.weight"`, `"layers.{i + first}.weight"`,
    `"layers.{2 * i + 1}.weight"`.
    """

    code: ClassVar[str] = "E0284"
    title: ClassVar[str] = "bad foreign name: {reason}"
    label: ClassVar[str] = "{reason}"

    reason: str


class CheckpointCircle(Diagnostic, frozen=True):
    """A `checkpoint` section takes a part's names from another that leads back to it."""

    code: ClassVar[str] = "E0285"
    title: ClassVar[str] = "checkpoint `{name}` contains itself"
    label: ClassVar[str] = "leads back to `{name}`"

    name: str
