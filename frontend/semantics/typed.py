"""Typed blocks: every expression with its dims, every name resolved. Independent of sizes.

A typed expression is an operation, its arguments and its kind. The dims of a kind stand in the
order in which the lowered value is laid out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.semantics.choosing import (
    Combine,
    Concat,
    Dispatch,
    ExpertDot,
    ExpertTake,
    Join,
    Number,
    OneHot,
    Part,
    Pick,
    Shift,
    Split,
    Tally,
    TopK,
)
from fllmc.frontend.semantics.typed_attention import Attend, Rope
from fllmc.ir.program import turns_dim
from fllmc.ir.span import NOWHERE, Span


class Kind(Struct, frozen=True):
    """What a value is: numbers over dims, indices of a dim, or truth values.

    `host` marks plain numbers that are known on the host (constants, the step, the rate). A
    `broken` kind stands for a mistake that was already reported; nothing more is said about it.
    """

    dims: tuple[str, ...] = ()
    index: str = ""
    form: Literal["number", "index", "truth", "broken"] = "number"
    host: bool = False

    @property
    def broken(self) -> bool:
        """Whether a mistake in this value was already reported."""
        return self.form == "broken"

    def __str__(self) -> str:
        if self.host:
            return "a number"
        return f"{self.index}[{', '.join(self.dims)}]"


HOST = Kind(host=True)
BROKEN = Kind(form="broken")


class Local(Struct, frozen=True):
    """An input, an equation's value, a state or a parameter of a rule."""

    name: str


class Constant(Struct, frozen=True):
    """A number."""

    value: float


class Size(Struct, frozen=True):
    """The size of a dim, as a number."""

    dim: str


class Prim(Struct, frozen=True):
    """An elementwise operation by name."""

    name: str


class Reduce(Struct, frozen=True):
    """`sum` or `max` over dims."""

    name: Literal["sum", "max"]
    dims: tuple[str, ...]


class Contract(Struct, frozen=True):
    """`dot[dims](a, b)`."""

    dims: tuple[str, ...]


class Renamed(Struct, frozen=True):
    """The argument with dims renamed (old, new)."""

    pairs: tuple[tuple[str, str], ...]


class Plain(Struct, frozen=True):
    """A plain parameter as a value."""

    param: str


class Apply(Struct, frozen=True):
    """An arrow applied to its one argument: a contraction, or a lookup when that holds indices."""

    param: str
    transposed: bool = False


class Use(Struct, frozen=True):
    """A sub-block or stack applied to arguments in the order of the block's inputs."""

    name: str


class Composite(Struct, frozen=True):
    """A named composite over dims, with options in a fixed order."""

    name: str
    over: tuple[str, ...] = ()
    options: tuple[tuple[str, float | str], ...] = ()


class Conv(Struct, frozen=True):
    """Windows along dims times a weight; zeros around are `pad` on either side, or by a `word`."""

    along: tuple[str, ...]
    taps: tuple[str, ...]
    to: tuple[str, ...]
    over: tuple[str, ...]
    stride: tuple[ast.Expr, ...]
    pad: tuple[ast.Expr, ...]
    word: str


class Recur(Struct, frozen=True):
    """Linear attention, or with a fifth argument the delta rule."""

    along: str
    dim: str
    value: str
    heads: str
    groups: str


class Positions(Struct, frozen=True):
    """The positions along a dim, as indices of it."""

    dim: str


Operation = (
    Local | Constant | Size | Prim | Reduce | Contract | Renamed | Split | Join | Plain | Apply
    | Use | Composite | Rope | Attend | Positions | Pick | OneHot | TopK | Dispatch | Combine
    | ExpertDot | ExpertTake | Tally | Shift | Concat | Conv | Recur | Part | Number
)  # fmt: skip


class Typed(Struct, frozen=True):
    """An expression with its kind."""

    kind: Kind
    op: Operation
    args: tuple[Typed, ...] = ()
    span: Span = NOWHERE


class Member(Struct, frozen=True):
    """What a block declares under a name."""

    name: str
    span: Span


class Param(Member, frozen=True):
    """A parameter. An arrow has a source; a plain tensor has its dims in `target` alone.

    `init` is as written; `lookup` says that the arrow is applied to indices somewhere, `state` that
    an equation steps it and no gradient.
    """

    source: tuple[str, ...]
    target: tuple[str, ...]
    shape: Span
    init: ast.Expr | None = None
    arrow: bool = False
    lookup: bool = False
    state: bool = False

    @property
    def stored(self) -> tuple[str, ...]:
        """The dims of the stored tensor: source, then target, primed where the source has it."""
        return (*self.source, *(primed(name, self.source) for name in self.target))

    def __str__(self) -> str:
        return f"{_group(self.source)} -> {_group(self.target)}" if self.arrow else "a tensor"


class Key(Struct, frozen=True, order=True):
    """Which block: blocks of one name may stand in several files."""

    file: str
    name: str


class Nested(Member, frozen=True):
    """A `sub`, or a `stack` when `over` names a dim.

    With a `period` the block is a pattern of that many layers, its subs named by their numbers; it
    is run for each whole period, and the layers that are left follow by themselves.
    """

    block: Key
    over: str = ""
    period: int = 0

    @property
    def turns(self) -> str:
        """The dim over which its block is run: that of the layers, or that of their periods."""
        return turns_dim(self.over, self.period) if self.period else self.over


class Input(Struct, frozen=True):
    """A typed input of a block."""

    name: str
    kind: Kind
    span: Span


class Signature(Struct, frozen=True):
    """What the users of a block see of it."""

    key: Key
    inputs: tuple[Input, ...]
    result: Kind
    span: Span
    result_span: Span


class Requirement(Struct, frozen=True):
    """What sizes must obey: `divides` (a divides b), `even` (a), `same` (a and b), `at_most` (a is
    no larger than b), `product` (a is the product of the dims in b, parted by blanks: rows for
    choices), `parts` (the same of a dim and those that it is split into), `distances` (a is the sum
    of the dims in b, less one), `sum` (a is their sum), `at_most_of` (a is no larger than b:
    queries among keys) or `windows` (a is how many there are: b holds the dims along and of taps,
    and a word for the zeros around; `numbers` are the stride and how many zeros)."""

    rule: Literal[
        "divides", "even", "same", "at_most", "product", "parts", "distances", "at_most_of", "sum",
        "windows",
    ]  # fmt: skip
    a: str
    b: str
    span: Span
    numbers: tuple[ast.Expr, ...] = ()


class Step(Struct, frozen=True):
    """One equation; `penalty` if its value is added to the loss as well, `total` if it is summed
    over the samples of a step."""

    name: str
    value: Typed
    penalty: bool = False
    total: bool = False


class Update(Struct, frozen=True):
    """What a state is after a step, of what it was and of one total."""

    state: str
    total: str
    value: Typed


class Block(Struct, frozen=True):
    """A typed block, model or loss. `dims` are those it speaks of, each with one place.

    `numbers` are what a loss takes beside tensors, with their defaults.
    """

    signature: Signature
    is_model: bool
    members: tuple[Param | Nested, ...]
    steps: tuple[Step, ...]
    returned: Typed
    requirements: tuple[Requirement, ...]
    dims: tuple[tuple[str, Span], ...]
    updates: tuple[Update, ...] = ()
    facts: tuple[ast.Require, ...] = ()
    numbers: tuple[tuple[str, float], ...] = ()
    is_loss: bool = False

    @property
    def params(self) -> Mapping[str, Param]:
        """Its own parameters by name."""
        return {member.name: member for member in self.members if isinstance(member, Param)}

    @property
    def nested(self) -> Mapping[str, Nested]:
        """Its subs and stacks by name."""
        return {member.name: member for member in self.members if isinstance(member, Nested)}


def primed(name: str, source: tuple[str, ...]) -> str:
    """The stored name of a target dim: `embed'` where the source has `embed` too."""
    return name + "'" if name in source else name


def _group(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else "(" + ", ".join(names) + ")"
