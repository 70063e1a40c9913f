"""What can be wrong with pipelines, adapters and recompute directives, in words.

Codes E0350 to E0379, W0370 to W0379, E0402, E0403; those of `shard` directives stand in
`place_errors.py`.
"""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Label, Severity, did_you_mean
from fllmc.ir.span import Span


class UnreadablePipeline(Diagnostic, frozen=True):
    """The text of a pipeline departs from its form at this place.

    A pipeline is passes with commas between, each with its options in braces:
    `inline,recompute{cheap=false},drop-unused`. A value is a number, a word, a quoted string,
    `[...]` or `{name=value}`.
    """

    code: ClassVar[str] = "E0350"
    title: ClassVar[str] = "a pipeline can't be read: wanted {wanted}, found {found}"
    label: ClassVar[str] = "wanted {wanted}"

    wanted: str
    found: str


class UnknownPass(Diagnostic, frozen=True):
    """No pass has this name."""

    code: ClassVar[str] = "E0351"
    title: ClassVar[str] = "no pass is called `{word}`"
    label: ClassVar[str] = "no such pass"

    word: str
    known: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The nearest pass, or all of them."""
        return did_you_mean(self.word, self.known) or (f"passes are {', '.join(self.known)}",)


class UnknownOption(Diagnostic, frozen=True):
    """The pass has no option of this name."""

    code: ClassVar[str] = "E0352"
    title: ClassVar[str] = "pass `{name}` has no option `{word}`"
    label: ClassVar[str] = "no such option"

    name: str
    word: str
    known: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The nearest option, or all of them."""
        shown = ", ".join(f"`{option}`" for option in self.known)
        options = f"its options are {shown}" if shown else "it has no options"
        return did_you_mean(self.word, self.known) or (options,)


class WrongOption(Diagnostic, frozen=True):
    """An option has a value of the wrong kind, or one that must be given is missing."""

    code: ClassVar[str] = "E0353"
    title: ClassVar[str] = "the options of pass `{name}` do not fit: {why}"
    label: ClassVar[str] = "does not fit"

    name: str
    why: str


class WrongLevel(Diagnostic, frozen=True):
    """A pass stands where the program has a level that it does not take.

    Programs go through the levels model, training, sharded and plan, in this order.
    """

    code: ClassVar[str] = "E0354"
    title: ClassVar[str] = "pass `{name}` does not take a program of level {have}"
    label: ClassVar[str] = "the program is of level {have} here"

    name: str
    have: str


class AdapterSelectsNothing(Diagnostic, frozen=True):
    """A `freeze`, `tune` or `lora` selector matches no parameter.

    A selector is a dotted path with `*` for one or more parts. It speaks of all layers of a stack
    or of none, since these are stored as one tensor.
    """

    code: ClassVar[str] = "E0360"
    title: ClassVar[str] = "`{verb} {selector}` matches no parameter"
    label: ClassVar[str] = "nothing is selected"

    verb: str
    selector: str
    paths: tuple[str, ...]
    part_of: str = ""

    def helps(self) -> tuple[str, ...]:
        """All layers instead of some, the nearest path, or some paths."""
        if self.part_of:
            return (f"a selector speaks of all layers of a stack or of none: `{self.part_of}`",)
        shown = ", ".join(f"`{path}`" for path in self.paths[:3])
        few = (f"parameters are {shown} ...",) if shown else ()
        return did_you_mean(self.selector, self.paths) or few


class NoArrow(Diagnostic, frozen=True):
    """A `lora` selector matches parameters, but none that is applied as a linear map.

    A low-rank update is a product of two maps, so it can be added only to a parameter declared
    with an arrow, `wq: embed -> (heads, head_dim)`.
    """

    code: ClassVar[str] = "E0361"
    title: ClassVar[str] = "`lora {selector}` matches no linear map"
    label: ClassVar[str] = "selects only {found}"

    selector: str
    found: str


class NoSuchRows(Diagnostic, frozen=True):
    """`rows` of a `freeze` or `tune` reach beyond the rows of a parameter that is selected.

    Rows count along a parameter's first dim, of each layer of a stack: of a map that is its first
    input dim.
    """

    code: ClassVar[str] = "E0366"
    title: ClassVar[str] = "`{parameter}` has no rows {first} to {stop}: it has {count}"
    label: ClassVar[str] = "beyond the last row"

    parameter: str
    first: int
    stop: int
    count: int
    dim: str

    def helps(self) -> tuple[str, ...]:
        """The dim along which rows count."""
        return (f"rows count along `{self.dim}`",) if self.dim else ("it is a single number",)


class RowsOverlap(Diagnostic, frozen=True):
    """Two `freeze` or two `tune` directives speak of the same rows of one parameter."""

    code: ClassVar[str] = "E0367"
    title: ClassVar[str] = "rows {first} to {stop} of `{parameter}` are selected twice"
    label: ClassVar[str] = "second time"

    parameter: str
    first: int
    stop: int
    origin: Span

    def secondary(self) -> tuple[Label, ...]:
        """The first directive."""
        return (Label(self.origin, "first here"),)


class RowsSettled(Diagnostic, frozen=True):
    """Rows are frozen of a parameter that is frozen wholly, or tuned of one that trains wholly.

    `freeze` and `tune` without rows are applied first, and say what the rows begin as.
    """

    code: ClassVar[str] = "E0368"
    title: ClassVar[str] = "`{verb}` of some rows changes nothing: all of `{parameter}` {state}"
    label: ClassVar[str] = "these rows too, without being named"

    verb: str
    parameter: str
    state: str

    def helps(self) -> tuple[str, ...]:
        """The directive that would make rows an exception."""
        other = "freeze" if self.verb == "tune" else "tune"
        return (f"`{other} {self.parameter}` first would make them an exception",)


class MixedUse(Diagnostic, frozen=True):
    """A parameter with a low-rank update is applied in a way that the update has no meaning for.

    A map may be applied forwards or transposed; each contracts all dims of one of its sides.
    """

    code: ClassVar[str] = "E0362"
    title: ClassVar[str] = (
        "`{parameter}` has a low-rank update over [{source}], but is applied over [{used}]"
    )
    label: ClassVar[str] = "this update"

    parameter: str
    source: str
    used: str


class NoSamples(Diagnostic, frozen=True):
    """Dropout draws random numbers by sample, so what it is applied to needs the batch dim."""

    code: ClassVar[str] = "E0363"
    title: ClassVar[str] = "`{parameter}` can't have dropout: its operand has no batch dim"
    label: ClassVar[str] = "asks for dropout"

    parameter: str


class RecomputesNothing(Diagnostic, frozen=True):
    """A `recompute` selector, or a path that it is to keep, matches no operation.

    Paths are those of the model's blocks and equations; `*` stands for the layers of a stack.
    """

    code: ClassVar[str] = "E0370"
    title: ClassVar[str] = "no operation matches `{selector}`"
    label: ClassVar[str] = "`{selector}` selects nothing"

    selector: str
    paths: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The nearest path, or some paths."""
        shown = ", ".join(f"`{path}`" for path in self.paths[:3])
        few = (f"paths are {shown} ...",) if shown else ()
        return did_you_mean(self.selector, self.paths) or few


class CompressesNothing(Diagnostic, frozen=True):
    """A `compress` selector matches no value that a stack keeps and that can be rounded.

    Only floating-point values with a dim of their own beside those of the data are: a statistic for
    each token, a log-sum-exp of attention or a choice is kept exactly.
    """

    code: ClassVar[str] = "W0374"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "nothing that is kept and can be compressed matches `{selector}`"
    label: ClassVar[str] = "selects no such value"
    help: ClassVar[tuple[str, ...]] = ("`fllmc inspect SPEC --decisions` lists what is kept",)

    selector: str


class BlocksCut(Diagnostic, frozen=True):
    """Ranks would not have whole blocks of a value to be compressed, so it is kept as it is.

    Blocks depend on a dim's size alone, so that a run's numbers do not depend on its mesh. On a
    mesh where this is said they do: elsewhere the value is rounded, and here it is not.
    """

    code: ClassVar[str] = "W0375"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = (
        "`{path}` is not compressed: {count} blocks along `{dim}` are not shared by {ranks} ranks"
    )
    label: ClassVar[str] = "would round it"

    path: str
    dim: str
    count: int
    ranks: int


class OffloadsNothing(Diagnostic, frozen=True):
    """An `offload` selector matches no value that a stack keeps for its backward pass.

    Only what is kept can wait in host memory. `fllmc inspect SPEC --decisions` lists what is kept;
    `keep` in a `recompute` directive keeps more.
    """

    code: ClassVar[str] = "W0372"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "nothing that is kept matches `{selector}`"
    label: ClassVar[str] = "selects no kept value"
    help: ClassVar[tuple[str, ...]] = ("`fllmc inspect SPEC --decisions` lists what is kept",)

    selector: str


class BudgetUnmet(Diagnostic, frozen=True):
    """A rank needs more than `budget_gib` even with the fewest bytes kept for the backward pass.

    What is left are parameters, gradients, optimizer state, data, and what one layer needs while it
    is computed. Each way out that is named has been tried and fits.
    """

    code: ClassVar[str] = "E0402"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "a rank needs {least}, and the budget is {budget}"
    note: ClassVar[tuple[str, ...]] = (
        "it is {over} too small, with all recomputed that can be: {kept} are kept",
    )

    least: str
    budget: str
    over: str
    kept: str
    ways: tuple[str, ...] = ()

    def setting(self) -> str:
        """Where the budget was set."""
        return "budget_gib"

    def helps(self) -> tuple[str, ...]:
        """What was tried and fits."""
        fits = tuple(f"it fits with `{way}`" for way in self.ways)
        return fits or ("divide more with `--mesh`, or make the batch smaller",)


class HostTooSmall(Diagnostic, frozen=True):
    """What waits in host memory by `offload` directives takes more than `host_gib` allows.

    What is chosen under `budget_gib` stays within it, so directives alone can ask for too much.
    """

    code: ClassVar[str] = "E0403"
    infeasible: ClassVar[bool] = True
    title: ClassVar[str] = "{needed} wait in a rank's host memory, and `host_gib` allows {allowed}"
    help: ClassVar[tuple[str, ...]] = ("`offload` less, or let `budget_gib` choose what waits",)

    needed: str
    allowed: str

    def setting(self) -> str:
        """Where it was allowed."""
        return "host_gib"


class NothingToRecompute(Diagnostic, frozen=True):
    """A `recompute` selector matches only operations whose values no later backward pass waits for.

    What is computed behind the last stack is used by its gradient at once, so recomputing it would
    cost time and save nothing.
    """

    code: ClassVar[str] = "W0371"
    severity: ClassVar[Severity] = "warning"
    title: ClassVar[str] = "`recompute {selector}` changes nothing"
    label: ClassVar[str] = "nothing under it is kept over a stack"

    selector: str
