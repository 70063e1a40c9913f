"""What expressions do with positions and choices: cut, joined, shifted, picked, sent to experts."""

from __future__ import annotations

from msgspec import Struct

from fllmc.frontend import ast


class Pick(Struct, frozen=True):
    """The argument at indices of one of its dims."""

    dim: str


class OneHot(Struct, frozen=True):
    """Along a new last dim, one at the index and zero elsewhere."""

    dim: str


class Split(Struct, frozen=True):
    """The argument with a dim as two; position i is at i // inner of `outer`, i mod inner."""

    dim: str
    outer: str
    inner: str


class Join(Struct, frozen=True):
    """The argument with two dims as one, the inverse of a split."""

    outer: str
    inner: str
    dim: str


class Shift(Struct, frozen=True):
    """The argument some positions further on along a dim, zero where there is none."""

    dim: str
    by: int


class Concat(Struct, frozen=True):
    """Two arguments one behind the other: along `first` and `second` in one dim."""

    first: str
    second: str
    to: str


class TopK(Struct, frozen=True):
    """The largest along a dim, or where they are."""

    over: str
    to: str
    indices: bool


class Dispatch(Struct, frozen=True):
    """Tokens to expert layout, from a value laid out as `order`."""

    along: str
    choices: str
    to: tuple[str, ...]
    order: tuple[str, ...]


class Combine(Struct, frozen=True):
    """Rows laid out as `order` back to tokens, those of a token added up."""

    along: str
    choices: str
    of: tuple[str, ...]
    order: tuple[str, ...]


class ExpertDot(Struct, frozen=True):
    """Rows by the matrices of their experts; `lead` are the dims of sequences."""

    along: str
    choices: str
    experts: str
    rows: str
    contract: tuple[str, ...]
    lead: tuple[str, ...]


class ExpertTake(Struct, frozen=True):
    """For each row what a tensor has for its expert; `lead` are the dims of sequences."""

    along: str
    choices: str
    experts: str
    rows: str
    lead: tuple[str, ...]


class Tally(Struct, frozen=True):
    """How often each of `experts` is chosen in each sequence."""

    along: str
    choices: str
    experts: str


class Part(Struct, frozen=True):
    """As many positions of a dim as `to` has, from `first`."""

    of: str
    to: str
    first: ast.Expr


class Number(Struct, frozen=True):
    """Indices as numbers."""
