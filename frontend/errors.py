"""What the checker says of names, imports, sizes and rules.

Equations: `type_errors.py`; sections: `section_errors.py`.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Fix, Label, Severity, did_you_mean, instead, nearest
from fllmc.ir.span import NOWHERE, Span

TRANSPOSES = frozenset({"t", "mt", "transpose", "transposed"})
"""How others spell `.T`."""


class Named(Diagnostic, frozen=True):
    """Base: a name that isn't found among `candidates`."""

    name: str
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.name, self.candidates)

    def fixes(self) -> tuple[Fix, ...]:
        return nearest(self.span, self.name, self.candidates)


class Explained(Diagnostic, frozen=True):
    """Base: with the place that explains the mistake."""

    because: ClassVar[str] = ""

    def secondary(self) -> tuple[Label, ...]:
        origin: Span = getattr(self, "origin", NOWHERE)
        return () if origin == NOWHERE else (Label(origin, self.fill(self.because)),)


# Files and imports.


class ImportMissing(Diagnostic, frozen=True):
    """An imported file does not exist or can't be read.

    A path is looked up relative to the file that imports it, then among the specs that ship
    (`library/transformer.fllm`, `models/llama3_8b.fllm`).
    """

    code: ClassVar[str] = "E0201"
    title: ClassVar[str] = "can't import `{path}`"
    label: ClassVar[str] = "{reason}"
    note: ClassVar[tuple[str, ...]] = ("looked for {places}",)

    path: str
    reason: str
    places: str
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.path, self.candidates)

    def fixes(self) -> tuple[Fix, ...]:
        quoted = (f'"{path}"' for path in self.candidates)
        return nearest(self.span, f'"{self.path}"', quoted)


class ImportCycle(Diagnostic, frozen=True):
    """Files import each other in a circle. Move what both need into a third file."""

    code: ClassVar[str] = "E0202"
    title: ClassVar[str] = "this import closes a circle"
    label: ClassVar[str] = "{chain}"

    chain: str


class ImportedName(Named, frozen=True):
    """The imported file has no section of that name."""

    code: ClassVar[str] = "E0203"
    title: ClassVar[str] = "`{path}` has no `{name}`"
    label: ClassVar[str] = "no section of this name there"

    path: str = ""


# Names.


class Duplicate(Explained, frozen=True):
    """Two things in one scope have one name. Names in a block are given once and never change."""

    code: ClassVar[str] = "E0204"
    title: ClassVar[str] = "`{name}` is already taken"
    label: ClassVar[str] = "second {what} of this name"
    because: ClassVar[str] = "first given here"

    name: str
    what: str
    origin: Span


class UnknownName(Named, frozen=True):
    """An equation uses a name that nothing gives before this place.

    Known are the block's inputs, its `param`, `sub` and `stack` names, the equations above, the
    declared dims (as numbers) and the built-in functions.
    """

    code: ClassVar[str] = "E0205"
    title: ClassVar[str] = "unknown name `{name}`"
    label: ClassVar[str] = "not given before this place"


class UnknownDim(Named, frozen=True):
    """A dim is used that no `dims` section declares.

    Every dim stands in a `dims` section of the file or of one that it imports, with its size or,
    when the `data` section binds it, without.
    """

    code: ClassVar[str] = "E0206"
    title: ClassVar[str] = "unknown dim `{name}`"
    label: ClassVar[str] = "not declared in `dims`"

    def helps(self) -> tuple[str, ...]:
        found = did_you_mean(self.name, self.candidates)
        return found or (f"declare it: `dims {{ {self.name} = ... }}`",)


class UnknownBlock(Named, frozen=True):
    """A `sub`, `stack`, `train` or `adapter` names a block or model that isn't there."""

    code: ClassVar[str] = "E0207"
    title: ClassVar[str] = "unknown {what} `{name}`"
    label: ClassVar[str] = "no {what} of this name in this file or its imports"

    what: str = "block"
    remark: str = ""

    def helps(self) -> tuple[str, ...]:
        return (self.remark,) if self.remark else did_you_mean(self.name, self.candidates)


class NotAValue(Explained, frozen=True):
    """A block, an arrow or a function stands where a tensor is wanted.

    An arrow or sub-block gives a value when it is applied: `wq(x)`. A block of the file is given a
    name with `sub` first.
    """

    code: ClassVar[str] = "E0208"
    title: ClassVar[str] = "`{name}` is {what}, not a value"
    label: ClassVar[str] = "a value is wanted here"
    because: ClassVar[str] = "declared here"

    name: str
    what: str
    way: str = ""
    origin: Span = NOWHERE

    def helps(self) -> tuple[str, ...]:
        return (self.way,) if self.way else ()


class NotCallable(Explained, frozen=True):
    """Something is applied that takes no arguments: a tensor, a number, a block without `sub`."""

    code: ClassVar[str] = "E0209"
    title: ClassVar[str] = "{what} can't be applied"
    label: ClassVar[str] = "neither an arrow nor a sub-block nor a function"
    because: ClassVar[str] = "given here"

    what: str
    way: str = ""
    origin: Span = NOWHERE

    def helps(self) -> tuple[str, ...]:
        return (self.way,) if self.way else ()


class Recursion(Diagnostic, frozen=True):
    """A block contains itself, directly or through others; it would have no end."""

    code: ClassVar[str] = "E0210"
    title: ClassVar[str] = "block `{name}` contains itself"
    label: ClassVar[str] = "{chain}"
    help: ClassVar[tuple[str, ...]] = ("to repeat a block, use `stack NAME: BLOCK over DIM`",)

    name: str
    chain: str


class UnknownAttribute(Diagnostic, frozen=True):
    """The only attribute is `.T`, the transposed use of an arrow: `embedding.T(x)`."""

    code: ClassVar[str] = "E0211"
    title: ClassVar[str] = "no attribute `{name}`"
    label: ClassVar[str] = "only an arrow has one, and only `.T`"

    name: str

    def fixes(self) -> tuple[Fix, ...]:
        return instead(self.span, self.name, "T" if self.name.lower() in TRANSPOSES else None)


# Sizes.


class NoSize(Diagnostic, frozen=True):
    """A dim of the model has no size: neither `dims` nor the `data` section gives one."""

    code: ClassVar[str] = "E0226"
    title: ClassVar[str] = "dim `{dim}` has no size"
    label: ClassVar[str] = "{reason}"
    help: ClassVar[tuple[str, ...]] = ("give it one with `{way}`",)

    dim: str
    reason: str
    way: str


class BadSize(Diagnostic, frozen=True):
    """The size of a dim is not a whole number above zero, or can't be computed."""

    code: ClassVar[str] = "E0227"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str
    candidates: tuple[str, ...] = ()
    word: str = ""

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.word, self.candidates) if self.word else ()

    def fixes(self) -> tuple[Fix, ...]:
        return nearest(self.span, self.word, self.candidates)


class SizeTwice(Explained, frozen=True):
    """A dim gets its size from two places."""

    code: ClassVar[str] = "E0228"
    title: ClassVar[str] = "dim `{dim}` has two sizes"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "and a size here"
    help: ClassVar[tuple[str, ...]] = ("leave one of them out",)

    dim: str
    reason: str
    origin: Span


class SizesDisagree(Diagnostic, frozen=True):
    """The sizes of dims don't fit what an operation needs."""

    code: ClassVar[str] = "E0229"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str


# Optimizers and rates.


class BadRule(Diagnostic, frozen=True):
    """An optimizer or a rate is not of the form that its use needs.

    An optimizer gives new values to `param` and to its states, from `param`, `grad`, the states,
    `rate` and `step`; a rate returns a number from `step` (1, 2, ...) and `steps`.
    """

    code: ClassVar[str] = "E0230"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str


class Unused(Diagnostic, frozen=True):
    """A name is given and never used. Take it out, or use it."""

    code: ClassVar[str] = "W0201"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "{what} `{name}` is never used"
    label: ClassVar[str] = "given here"

    name: str
    what: str
