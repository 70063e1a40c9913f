"""What the checker says of equations: dims that don't fit, arguments, results, parameters."""

from __future__ import annotations

from typing import ClassVar

from fllmc.frontend.errors import Explained, Named
from fllmc.ir.diagnostics import Diagnostic, Edit, Fix, did_you_mean, nearest
from fllmc.ir.span import NOWHERE, Span


class CannotApply(Explained, frozen=True):
    """An arrow is applied to a value that lacks one of its source dims.

    `param wq: embed -> (heads, head_dim)` takes any tensor that has `embed` and replaces it by
    `heads, head_dim`. An arrow from a single dim also takes indices of that dim, and looks up.
    """

    code: ClassVar[str] = "E0212"
    title: ClassVar[str] = "`{name}` can't be applied to {what}"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "`{name}` takes {takes} to {gives}"

    name: str
    what: str
    reason: str
    takes: str
    gives: str
    origin: Span
    applied: Span = NOWHERE

    def fixes(self) -> tuple[Fix, ...]:
        """The map applied the other way, or declared the other way."""
        if self.applied == NOWHERE:
            return ()
        transposed = self.name.endswith(".T")
        other = self.name.removesuffix(".T") if transposed else f"{self.name}.T"
        use = Fix(f"apply `{other}`", (Edit(self.applied, other, self.name),))
        if transposed:
            return (use,)
        source, target = _side(self.gives), _side(self.takes)
        return use, Fix(
            f"declare {source} -> {target}", (Edit(self.origin, f"{source} -> {target}"),)
        )


class DimTwice(Explained, frozen=True):
    """A dim stands twice where every dim has its own name: in a value, a shape or a list of dims.

    Rename one of them first: `x{seq = key}`.
    """

    code: ClassVar[str] = "E0213"
    title: ClassVar[str] = "{what} dim `{dim}` twice"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "declared here"

    dim: str
    reason: str
    origin: Span = NOWHERE
    what: str = "the result would have"

    def helps(self) -> tuple[str, ...]:
        if self.what.startswith("this"):
            return ()
        return (f"rename one of them first, as in `x{{{self.dim} = other}}`",)


class WrongArgument(Explained, frozen=True):
    """The dims of an argument are not those that the block declares for this input."""

    code: ClassVar[str] = "E0214"
    title: ClassVar[str] = "`{name}` takes {wanted} as `{input}`, not {found}"
    label: ClassVar[str] = "{difference}"
    because: ClassVar[str] = "`{input}` is declared here"

    name: str
    input: str
    wanted: str
    found: str
    difference: str
    origin: Span


class MissingArgument(Explained, frozen=True):
    """A call leaves out an argument that has no default."""

    code: ClassVar[str] = "E0215"
    title: ClassVar[str] = "`{name}` needs `{argument}`"
    label: ClassVar[str] = "`{argument}` is missing"
    because: ClassVar[str] = "declared here"
    note: ClassVar[tuple[str, ...]] = ("the form is `{form}`",)

    name: str
    argument: str
    form: str
    origin: Span = NOWHERE


class ExtraArgument(Explained, frozen=True):
    """A call gives more arguments than there are, or one of them twice."""

    code: ClassVar[str] = "E0216"
    title: ClassVar[str] = "`{name}` takes no such argument"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "declared here"
    note: ClassVar[tuple[str, ...]] = ("the form is `{form}`",)

    name: str
    reason: str
    form: str
    origin: Span = NOWHERE


class UnknownArgument(Named, frozen=True):
    """A call names an argument that the function doesn't have."""

    code: ClassVar[str] = "E0217"
    title: ClassVar[str] = "`{function}` has no argument `{name}`"
    label: ClassVar[str] = "unknown argument"
    note: ClassVar[tuple[str, ...]] = ("the form is `{form}`",)

    function: str = ""
    form: str = ""


class WrongValue(Diagnostic, frozen=True):
    """A word, number, dim or text stands where another kind of thing is wanted."""

    code: ClassVar[str] = "E0218"
    title: ClassVar[str] = "{where} must be {wanted}, not {found}"
    label: ClassVar[str] = "this is {found}"

    where: str
    wanted: str
    found: str
    candidates: tuple[str, ...] = ()
    word: str = ""

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.word, self.candidates) if self.word else ()

    def fixes(self) -> tuple[Fix, ...]:
        return nearest(self.span, self.word, self.candidates)


class WrongResult(Explained, frozen=True):
    """What a block returns has other dims than it declares behind `->`."""

    code: ClassVar[str] = "E0219"
    title: ClassVar[str] = "`{name}` must return {wanted}, not {found}"
    label: ClassVar[str] = "{difference}"
    because: ClassVar[str] = "the result is declared here"

    name: str
    wanted: str
    found: str
    difference: str
    origin: Span


class NoSuchDim(Diagnostic, frozen=True):
    """An operation speaks of a dim that its operand doesn't have."""

    code: ClassVar[str] = "E0220"
    title: ClassVar[str] = "{what} needs dim `{dim}`"
    label: ClassVar[str] = "{found} has no dim `{dim}`"

    what: str
    dim: str
    found: str
    candidates: tuple[str, ...] = ()

    def helps(self) -> tuple[str, ...]:
        return did_you_mean(self.dim, self.candidates)

    def fixes(self) -> tuple[Fix, ...]:
        return nearest(self.span, self.dim, self.candidates)


class NotNumbers(Diagnostic, frozen=True):
    """Indices are used as numbers. Indices can be looked up with, and nothing else."""

    code: ClassVar[str] = "E0221"
    title: ClassVar[str] = "{what} wants numbers"
    label: ClassVar[str] = "this holds {found}"

    what: str
    found: str

    def helps(self) -> tuple[str, ...]:
        if not self.found.startswith("indices"):
            return ()
        return ("look them up first, as in `embedding(tokens)`",)


class NoReturn(Diagnostic, frozen=True):
    """A block or rate must end in exactly one `return`; an optimizer has none."""

    code: ClassVar[str] = "E0222"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str


class BadParam(Diagnostic, frozen=True):
    """A parameter's declaration is wrong: its shape, or how it begins.

    Arrows begin as normal(std: 1/sqrt(size of the source)), lookups as normal(std: 0.02), unless
    told otherwise; a plain tensor must say.
    """

    code: ClassVar[str] = "E0223"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str
    way: str = ""

    def helps(self) -> tuple[str, ...]:
        return (self.way,) if self.way else ()


class BadAttention(Diagnostic, frozen=True):
    """The dims of queries, keys and values don't fit together.

    `attend(q: [.., seq, h, d], k: [.., seq, g, d], v: like k, along: seq)`, where g divides h; for
    plain multi-head attention g is h.
    """

    code: ClassVar[str] = "E0224"
    title: ClassVar[str] = "these can't attend to each other"
    label: ClassVar[str] = "{reason}"

    reason: str


class BadConv(Diagnostic, frozen=True):
    """The dims of a convolution don't fit together.

    `conv[seq](x, weight, taps: width, over: channel)` slides a window of `width` positions along
    `seq` and sums over it and over `channel`. The weight has the dims of taps and those that are
    summed over; what else it shares with x are groups, and what it has alone is new in the result.
    """

    code: ClassVar[str] = "E0234"
    title: ClassVar[str] = "this is no convolution"
    label: ClassVar[str] = "{reason}"

    reason: str


class BadRecurrence(Diagnostic, frozen=True):
    """The dims of a recurrence don't fit together.

    `linear_attend(q: [.., seq, g, d], k: like q, v: [.., seq, h, e], decay: [.., seq, h], along:
    seq)`, where g divides h, or q and k have no heads and share them; `delta_attend` takes a rate
    of writing too, as the decay.
    """

    code: ClassVar[str] = "E0235"
    title: ClassVar[str] = "these make no recurrence"
    label: ClassVar[str] = "{reason}"

    reason: str


class BadStack(Explained, frozen=True):
    """A block can't be stacked as it is.

    A stack hands each layer's result to the next, so the block's result must be as its first input,
    and its parameters must not have the dim of the stack.
    """

    code: ClassVar[str] = "E0225"
    title: ClassVar[str] = "`{block}` can't be stacked over `{over}`"
    label: ClassVar[str] = "{reason}"
    because: ClassVar[str] = "declared here"

    block: str
    over: str
    reason: str
    origin: Span = NOWHERE


class BadExperts(Diagnostic, frozen=True):
    """The dims of a mixture of experts don't fit together.

    `chosen`, from `top_k_indices`, is experts[.., seq, choices]. `dispatch(x, chosen, along: seq,
    to: rows)` takes [.., seq, ..] to [.., rows, ..] by expert, without a capacity; `to: (experts,
    slots)` gives each expert `slots` rows of a sequence, and drops what finds none. `expert_dot`
    multiplies rows by a weight that has `experts`; `combine` takes them back, added up for a token.
    """

    code: ClassVar[str] = "E0232"
    title: ClassVar[str] = "{name} does not fit its experts"
    label: ClassVar[str] = "{reason}"

    name: str
    reason: str


class BadState(Diagnostic, frozen=True):
    """A state of a block has no update, or its update reads what is not known once a step is done.

    `state bias: [experts] = zeros()` is stored as a parameter is, and no gradient steps it: what it
    is after a step says `update bias = ...`, of the state itself and of one `total load = ...`
    with the dims of the state. A total has dim `batch` too, and is summed over all samples of the
    step: those of all devices and micro-batches.
    """

    code: ClassVar[str] = "E0238"
    title: ClassVar[str] = "{what}"
    label: ClassVar[str] = "{reason}"

    what: str
    reason: str


class BadPenalty(Diagnostic, frozen=True):
    """A penalty has a dim that tokens don't have.

    `penalty NAME = ...` in a block is added to the loss of each token, and the loss is the average
    over counted tokens. So a penalty has dims of the model's tokens alone: [batch, seq] is a number
    for each token, [batch] one for each sequence, [] one for the micro-batch. `sum` or `mean` take
    other dims away.
    """

    code: ClassVar[str] = "E0233"
    title: ClassVar[str] = "penalty `{name}` has dim `{dim}`, and tokens don't"
    label: ClassVar[str] = "the tokens of model `{model}` are [{tokens}]"
    help: ClassVar[tuple[str, ...]] = ("take it away: `sum[{dim}](...)` or `mean[{dim}](...)`",)

    name: str
    dim: str
    model: str
    tokens: str


class FactFails(Diagnostic, frozen=True):
    """A `require` in a block or a file does not hold for the sizes of this run.

    It compares two numbers made of sizes of dims, by `==`, `!=`, `<`, `<=`, `>` or `>=`.

        require heads % kv_heads == 0
    """

    code: ClassVar[str] = "E0290"
    title: ClassVar[str] = "`{fact}` does not hold"
    label: ClassVar[str] = "{sizes}"

    fact: str
    sizes: str


def _side(dims: str) -> str:
    """`a and b` as a side of an arrow."""
    names = dims.split(" and ")
    return names[0] if len(names) == 1 else f"({', '.join(names)})"
