"""Typed calls of `attend` and `rope`, whose numbers are known once sizes are."""

from __future__ import annotations

from msgspec import Struct

from fllmc.frontend import ast


class Scaling(Struct, frozen=True):
    """A named way to stretch rotary positions, with its numbers, lists of numbers and words."""

    name: str
    amounts: tuple[tuple[str, ast.Expr], ...]
    lists: tuple[tuple[str, tuple[ast.Expr, ...]], ...]
    words: tuple[tuple[str, str], ...]


class Rope(Struct, frozen=True):
    """Rotary positions; `rotary` None stands for all of the dim, `behind` None for its start."""

    along: str
    dim: str
    theta: ast.Expr | None
    layout: str
    rotary: ast.Expr | None = None
    scaling: Scaling | None = None
    behind: ast.Expr | None = None


class Attend(Struct, frozen=True):
    """Attention. `scale` None stands for 1/sqrt(size of dim).

    `value` is the dim of values where it is another than `dim`, `bias` the dim of distances.
    """

    along: str
    heads: str
    kv_heads: str
    dim: str
    mask: str
    scale: ast.Expr | None
    keys: str
    value: str
    sinks: bool
    bias: str
    window: ast.Expr | None
    cap: ast.Expr | None
