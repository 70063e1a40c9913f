"""What can be wrong with `shard` directives, in words. Codes E0310 to E0349."""

from __future__ import annotations

from typing import ClassVar

from fllmc.ir.diagnostics import Diagnostic, Label, Severity, did_you_mean
from fllmc.ir.span import NOWHERE, Span


def sizes_shown(sizes: tuple[int, ...]) -> str:
    """`1, 2, 4 or 8`."""
    words = [str(size) for size in sizes]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} or {words[-1]}"


class Indivisible(Diagnostic, frozen=True):
    """An axis does not divide a dim.

    Every rank holds an equal part of a dim that is divided over an axis, so the axis's size has to
    divide the dim's. The help lists the sizes that divide all dims that the schedule puts on it.
    """

    code = "E0310"
    infeasible = True
    title = "axis `{axis}` of size {extent} does not divide `{dim}` of size {size}"
    label = "`{dim}` is divided over `{axis}` here"
    note = ("each rank holds an equal part of a divided dim",)

    dim: str
    size: int
    axis: str
    extent: int
    others: tuple[str, ...]
    works: tuple[int, ...]

    def helps(self) -> tuple[str, ...]:
        """The sizes that work, for all dims on this axis."""
        what = f"`{self.dim}`" if len(self.others) < 2 else f"all of {', '.join(self.others)}"
        return (f"`{self.axis}` of size {sizes_shown(self.works)} divides {what}",)


class RowsLeftWhole(Diagnostic, frozen=True):
    """Rows that train beside frozen ones are fewer or more than an axis that divides the whole.

    So each rank along the axis stores and steps all of them. A number of trained rows that is a
    multiple of the axis is divided over it.
    """

    code = "W0319"
    severity = "warning"
    title = (
        "the {count} rows of `{parameter}` that train stay whole: axis `{axis}` of size {extent} "
        "does not divide them"
    )
    label = "divides the whole of `{parameter}`"

    parameter: str
    count: int
    axis: str
    extent: int


class LeftWhole(Diagnostic, frozen=True):
    """The default schedule would divide a dim over an axis that does not divide it.

    Since the spec didn't ask for it, the dim stays whole: every rank along the axis holds and
    computes all of it. A `schedule` in the spec says what is divided; padding a dim such as `vocab`
    to a multiple of the axis lets it be divided.
    """

    code = "W0316"
    severity = "warning"
    title = "`{dim}` of size {size} stays whole: axis `{axis}` of size {extent} does not divide it"
    label = "the default schedule divides `{dim}` over `{axis}`"

    dim: str
    size: int
    axis: str
    extent: int


class AxisTwice(Diagnostic, frozen=True):
    """An axis divides two dims of one value, or one dim twice.

    The ranks along an axis are numbered once: they can share out one dim of a value, not two. Keep
    one of the two directives, or put one of the dims on another axis.
    """

    code = "E0311"
    title = "axis `{axis}` would divide both {dims} of {value}"
    label = "this puts `{axis}` on a dim of {value}"

    axis: str
    dims: str
    value: str
    other: Span = NOWHERE
    by_zero: bool = False

    def helps(self) -> tuple[str, ...]:
        """The way out; `zero` chooses the dim by itself."""
        if self.by_zero:
            return (
                f"`zero` takes axes that divide no dim yet: take `{self.axis}` out of one of them",
            )
        return ("put one of the two dims on another axis of the mesh, or leave it whole",)

    def secondary(self) -> tuple[Label, ...]:
        """The other directive."""
        if self.other in (NOWHERE, self.span):
            return ()
        return (Label(self.other, f"`{self.axis}` is already used here"),)


class MustBeWhole(Diagnostic, frozen=True):
    """An op needs a dim whole that a directive divides.

    Some ops look at all positions of a dim at once: attention and rotary positions at `head_dim`, a
    stack at its layers. Dividing these needs another algorithm, such as a pipeline, and is not a
    matter of placement alone.
    """

    code = "E0312"
    title = "`{dim}` can't be divided over `{axis}`: {kind} at {path} needs it whole"
    label = "`{dim}` is divided here"
    help = ("take `{dim}` out of this directive",)

    dim: str
    axis: str
    kind: str
    path: str
    where: Span = NOWHERE

    def secondary(self) -> tuple[Label, ...]:
        """The op that needs the dim whole."""
        if self.where == NOWHERE:
            return ()
        return (Label(self.where, f"this {self.kind} needs all of `{self.dim}`"),)


class KeyHeadsCopied(Diagnostic, frozen=True):
    """Key heads are too few to be divided as query heads are.

    With grouped heads, as many query heads share a key head as there are of them for each. On an
    axis that does not divide the key heads, every rank computes them all, and has copies of those
    that its query heads use. Their gradient is summed over the axis.
    """

    code = "W0327"
    severity = "warning"
    title = "`{dim}` of size {size} stays whole: axis `{axis}` of size {extent} does not divide it"
    label = "`{heads}` is divided here; each rank copies the `{dim}` that its own use"

    dim: str
    size: int
    axis: str
    extent: int
    heads: str


class UnevenSequence(Diagnostic, frozen=True):
    """A sequence has no two equal stretches for each rank.

    Under a causal mask later tokens see more keys. So that all ranks have as much to do, each holds
    two stretches of the sequence, as far from the one end as from the other, and the sequence's
    length has to be a multiple of twice the axis's size. With `context: exchange` each rank has
    whole sequences, and a multiple of the axis's size is enough.
    """

    code = "E0325"
    infeasible = True
    title = (
        "`{dim}` of size {size} does not make two stretches for each of {extent} ranks on `{axis}`"
    )
    label = "`{dim}` is divided over `{axis}` here"
    note = ("each rank holds two equal stretches of the sequence, one from either half",)

    dim: str
    size: int
    axis: str
    extent: int
    works: tuple[int, ...]
    where: Span = NOWHERE

    def helps(self) -> tuple[str, ...]:
        """Lengths and sizes that work."""
        step = 2 * self.extent
        lengths = tuple(n for n in (self.size // step * step, (self.size // step + 1) * step) if n)
        return (
            f"`{self.dim}` of size {sizes_shown(lengths)} works",
            f"`{self.axis}` of size {sizes_shown(self.works)} works",
        )

    def secondary(self) -> tuple[Label, ...]:
        """The attention along the dim."""
        if self.where == NOWHERE:
            return ()
        return (Label(self.where, f"this attention sees `{self.dim}` in its order"),)


class TooFewHeads(Diagnostic, frozen=True):
    """There are too few heads to exchange for the sequence.

    With `context: exchange` each rank attends to whole sequences for a part of the heads, so the
    axes of the sequence divide the heads further than their own axes do. Key heads may be fewer:
    each rank then gets copies of those that its query heads use.
    """

    code = "E0326"
    infeasible = True
    title = "`{dim}` of size {size} can't be divided over {axes} of {extent} ranks"
    label = "`{along}` is divided here, and exchanged for `{dim}` in attention"
    help = ("`context: gather` or `context: ring` divide no heads",)

    dim: str
    size: int
    axes: str
    extent: int
    along: str
    where: Span = NOWHERE

    def secondary(self) -> tuple[Label, ...]:
        """The attention with these heads."""
        if self.where == NOWHERE:
            return ()
        return (Label(self.where, f"this attention has `{self.dim}` of size {self.size}"),)


class SelectsNothing(Diagnostic, frozen=True):
    """A `shard ... in SELECTOR` or `zero ... in SELECTOR` directive matches no parameter.

    A selector is a dotted path with `*` for one or more parts; it speaks of all layers of a stack
    or of none. `fllmc inspect SPEC` lists the paths.
    """

    code = "E0313"
    title = "no parameter matches `{selector}`"
    label = "nothing is selected"

    selector: str
    paths: tuple[str, ...]

    def helps(self) -> tuple[str, ...]:
        """The nearest path, or some paths."""
        found = did_you_mean(self.selector, self.paths)
        shown = ", ".join(f"`{path}`" for path in self.paths[:3])
        return found or ((f"parameters are {shown} ...",) if shown else ())


class HeadsApart(Diagnostic, frozen=True):
    """Query heads and the key/value heads that they use would lie on different ranks.

    With grouped heads, a rank that holds some query heads needs the key/value heads of these, so
    `heads` and `kv_heads` are placed on the same axes.
    """

    code = "E0314"
    title = "`{heads}` and `{kv_heads}` have to be divided alike"
    label = "{reason}"

    heads: str
    kv_heads: str
    reason: str
    axis: str
    works: tuple[int, ...]
    other: Span = NOWHERE

    def secondary(self) -> tuple[Label, ...]:
        """The attention that uses both."""
        if self.other == NOWHERE:
            return ()
        return (Label(self.other, f"`{self.heads}` attend to `{self.kv_heads}` here"),)

    def helps(self) -> tuple[str, ...]:
        """Sizes that work, and how to write it."""
        sizes = sizes_shown(self.works)
        return (
            f"`shard ({self.heads}, {self.kv_heads}) over {self.axis}` works with `{self.axis}` of "
            f"size {sizes}",
        )


class NoSuchAxis(Diagnostic, frozen=True):
    """A schedule names an axis that the mesh does not have, so the directive has no effect.

    A schedule can be used on meshes that lack some of its axes; the dims are then whole. Name the
    mesh's axes to give the directive an effect: `--mesh data=8,tensor=4`.
    """

    code = "W0315"
    severity: ClassVar[Severity] = "warning"
    title = "the mesh has no axis `{axis}`, so {dims} stay undivided on it"
    label = "`{axis}` is named here"
    note = ("the mesh is {mesh}",)
    help = ("name the axis when you give the mesh, as in `--mesh {axis}=2`",)

    axis: str
    dims: str
    mesh: str
