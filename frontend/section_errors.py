"""What the checker says of the sections beside the model, and of `--set`."""

from __future__ import annotations

from typing import ClassVar

from fllmc.frontend.errors import Explained, Named
from fllmc.ir.diagnostics import Diagnostic, Fix, did_you_mean, instead, near, nearest
from fllmc.ir.span import NOWHERE, Span


class UnknownKey(Named, frozen=True):
    """A record has a key that isn't one of its own."""

    code: ClassVar[str] = "E0241"
    title: ClassVar[str] = "{what} has no key `{name}`"
    label: ClassVar[str] = "unknown key"

    what: str = ""

    def notes(self) -> tuple[str, ...]:
        if near(self.name, self.candidates):
            return ()
        return ("its keys are " + ", ".join(f"`{key}`" for key in self.candidates),)


class MissingKey(Diagnostic, frozen=True):
    """A record leaves out a key that has no default."""

    code: ClassVar[str] = "E0242"
    title: ClassVar[str] = "{what} needs `{key}`"
    label: ClassVar[str] = "`{key}` is missing"
    help: ClassVar[tuple[str, ...]] = ("add `{key}: {example}`",)

    what: str
    key: str
    example: str


class UnknownSection(Named, frozen=True):
    """A section refers to another that isn't there."""

    code: ClassVar[str] = "E0243"
    title: ClassVar[str] = "no {what} is called `{name}`"
    label: ClassVar[str] = "unknown {what}"

    what: str = ""


class Ambiguous(Diagnostic, frozen=True):
    """A file has several sections of a kind, and nothing says which one is meant."""

    code: ClassVar[str] = "E0244"
    title: ClassVar[str] = "which {what}? there are {names}"
    label: ClassVar[str] = "one of several"
    help: ClassVar[tuple[str, ...]] = ("choose one: `--set {what}={first}`",)

    what: str
    names: str
    first: str


class NothingSelected(Diagnostic, frozen=True):
    """A selector speaks of no path of the model.

    `*` stands for one or more parts of a path, a number for one layer of a stack, `{a, b}` for
    alternatives. A selector also speaks of all that lies under what it names.
    """

    code: ClassVar[str] = "E0245"
    title: ClassVar[str] = "`{selector}` selects nothing"
    label: ClassVar[str] = "no {what} has such a path"

    selector: str
    what: str
    nearest: str = ""

    def helps(self) -> tuple[str, ...]:
        return (f"the nearest path is `{self.nearest}`",) if self.nearest else ()

    def fixes(self) -> tuple[Fix, ...]:
        return instead(self.span, self.selector, all_layers(self.nearest))


class PartOfStack(Diagnostic, frozen=True):
    """A selector picks some layers of a stack. All layers are one tensor: pick all or none."""

    code: ClassVar[str] = "E0246"
    title: ClassVar[str] = "`{selector}` selects `{parameter}` in some layers only"
    label: ClassVar[str] = "must speak of all layers or of none"
    help: ClassVar[tuple[str, ...]] = ("write `*` for the layer",)

    selector: str
    parameter: str

    def fixes(self) -> tuple[Fix, ...]:
        return instead(self.span, self.selector, all_layers(self.selector))


class UnknownAxis(Named, frozen=True):
    """A schedule names a mesh axis that the mesh doesn't have."""

    code: ClassVar[str] = "E0247"
    title: ClassVar[str] = "mesh `{mesh}` has no axis `{name}`"
    label: ClassVar[str] = "unknown axis"

    mesh: str = ""

    def notes(self) -> tuple[str, ...]:
        return ("its axes are " + ", ".join(f"`{axis}`" for axis in self.candidates),)


class UnknownOverride(Named, frozen=True):
    """`--set KEY=VALUE` names nothing that can be set.

    Keys are `train`, `data`, `schedule`, `mesh`, `checkpoint` (choose a section by name) and
    `train.KEY`, `data.KEY`, `schedule.KEY`, `dims.DIM`.
    """

    code: ClassVar[str] = "E0248"
    title: ClassVar[str] = "`{name}` can't be set"
    label: ClassVar[str] = "{reason}"

    reason: str = "no such key"


class VocabTooSmall(Explained, frozen=True):
    """The tokenizer gives more different tokens than the model has rows for."""

    code: ClassVar[str] = "E0249"
    title: ClassVar[str] = "dim `{dim}` is {size}, but the tokenizer has {tokens} tokens"
    label: ClassVar[str] = "{tokens} tokens"
    because: ClassVar[str] = "`{dim}` is declared here"
    help: ClassVar[tuple[str, ...]] = ("set `{dim}` to {tokens} or leave out its size",)

    dim: str
    size: int
    tokens: int
    origin: Span = NOWHERE


class LossDoesNotFit(Explained, frozen=True):
    """The model can't be trained with this loss.

    A `loss` takes what the model returns, in dims that the model has, and columns of the data.

    `cross_entropy` needs a model with one input of indices, `tokens: vocab[batch, seq]`, and a
    result of scores for each: `[batch, seq, vocab]`.
    """

    code: ClassVar[str] = "E0250"
    title: ClassVar[str] = "`{model}` can't be trained with `{loss}`"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "the model is declared here"

    model: str
    reason: str
    origin: Span
    loss: str = "cross_entropy"


class NothingToTrain(Diagnostic, frozen=True):
    """The spec has no `train` section, so there is nothing to compile or run."""

    code: ClassVar[str] = "E0251"
    title: ClassVar[str] = "`{file}` has no `train` section"
    label: ClassVar[str] = "nothing to compile"
    help: ClassVar[tuple[str, ...]] = ("add `train NAME: MODEL {{ ... }}`, or import the model",)

    file: str


class NoDecay(Diagnostic, frozen=True):
    """`no_decay` is given, but the optimizer has no parameter `weight_decay`."""

    code: ClassVar[str] = "E0252"
    title: ClassVar[str] = "optimizer `{name}` has no `weight_decay` to leave out"
    label: ClassVar[str] = "has no effect with this optimizer"

    name: str


class OutOfRange(Diagnostic, frozen=True):
    """A number is outside of what makes sense at this place."""

    code: ClassVar[str] = "E0253"
    title: ClassVar[str] = "{where} must be {wanted}, not {found}"
    label: ClassVar[str] = "{wanted} wanted"

    where: str
    wanted: str
    found: str


class BadBinding(Diagnostic, frozen=True):
    """An optimizer or rate gets an argument that it doesn't have, or lacks one that it needs."""

    code: ClassVar[str] = "E0254"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"
    note: ClassVar[tuple[str, ...]] = ("the form is `{form}`",)

    what: str
    reason: str
    form: str
    word: str = ""
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.word, self.candidates) if self.word else ()

    def fixes(self) -> tuple[Fix, ...]:
        return nearest(self.span, self.word, self.candidates)


class ShardTwice(Explained, frozen=True):
    """Two `shard` directives of one schedule speak of one dim in the same places."""

    code: ClassVar[str] = "E0255"
    title: ClassVar[str] = "dim `{dim}` is sharded twice"
    label: ClassVar[str] = "second time"
    because: ClassVar[str] = "first here"

    dim: str
    origin: Span


class NoTarget(Diagnostic, frozen=True):
    """A file that is given as a target must hold exactly one `target` section."""

    code: ClassVar[str] = "E0256"
    title: ClassVar[str] = "`{file}` has {count} `target` sections instead of one"

    file: str
    count: int


def all_layers(selector: str) -> str:
    """The selector with `*` for each number of a layer."""
    return ".".join("*" if part.isdecimal() else part for part in selector.split("."))
