"""Layouts of foreign tensors, in terms of the dims of the parameters in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.checkpoint_errors import LayoutDiffers
from fllmc.frontend.errors import UnknownDim
from fllmc.frontend.semantics.typed import Param, primed
from fllmc.ir.diagnostics import Diagnostic

Token = str
"""A stored dim, or a number of a split as `#2`; one that repeats has marks behind it, `#2'`."""

Shape = tuple[str, tuple[str, ...], Param]
"""A parameter's name, its dims that are not indexed, and its declaration."""


class Factor(Struct, frozen=True):
    """A factor of a foreign dim: for each parameter the dims that it is made of.

    In a `sum` they stand one behind the other; otherwise all have the same.
    """

    terms: tuple[tuple[Token, ...], ...]
    sum: bool = False


class Layout(Struct, frozen=True):
    """A layout: the foreign dims by factors, and for each parameter its dims as they are split."""

    axes: tuple[tuple[Factor, ...], ...]
    split: tuple[tuple[tuple[Token, ...], ...], ...]


class _Wrong(Exception):
    """The layout is none; the text says why, and of which parameter."""

    def __init__(self, reason: str, part: int = 0) -> None:
        super().__init__(reason)
        self.part = part


def typed_layout(
    layout: ast.Layout,
    splits: tuple[ast.Split, ...],
    shapes: Sequence[Shape],
    declared: Mapping[str, object],
) -> tuple[Layout | None, tuple[Diagnostic, ...]]:
    """The layout of these parameters in one tensor, or what is wrong with it."""
    unknown = [
        UnknownDim(name.span, name.text, tuple(declared))
        for root in (*layout.axes, *(split.group for split in splits))
        for name in _names(root)
        if name.text not in declared
    ]
    if unknown:
        return None, tuple(unknown)
    try:
        return _typed(layout, splits, shapes), ()
    except _Wrong as wrong:
        name, rest, _ = shapes[wrong.part]
        span = splits[0].span if splits and "split" in str(wrong) else layout.span
        return None, (LayoutDiffers(span, name, str(wrong), ", ".join(rest)),)


def _typed(layout: ast.Layout, splits: tuple[ast.Split, ...], shapes: Sequence[Shape]) -> Layout:
    held = [[_split(dim, splits) for dim in rest] for _, rest, _ in shapes]
    for split in splits:
        if not any(split.dim.text == dim for _, rest, _ in shapes for dim in rest):
            raise _Wrong(f"it has no dim `{split.dim.text}` to split")
    flat = [[_flat(factor) for factor in _factors(axis)] for axis in layout.axes]
    sums = [factor for axis in flat for factor in axis if isinstance(factor, list)]
    if len(sums) > 1:
        raise _Wrong("only one dim can be a sum")
    if sums and len(sums[0]) != len(shapes):
        raise _Wrong(f"a sum of {len(sums[0])} holds as many parameters, not {len(shapes)}")
    if not sums and len(shapes) > 1:
        raise _Wrong(f"{len(shapes)} parameters in one tensor need a sum such as `ffn + ffn`")
    per_part: list[list[list[tuple[Token, ...]]]] = []
    for part, (_, _, param) in enumerate(shapes):
        left = [token for tokens in held[part] for token in tokens]
        axes: list[list[tuple[Token, ...]]] = []
        for axis in flat:
            axes.append(
                [
                    tuple(
                        token
                        for item in (factor[part] if isinstance(factor, list) else (factor,))
                        if (token := _taken(item, left, param, part)) is not None
                    )
                    for factor in axis
                ]
            )
        if left:
            raise _Wrong(f"it lacks `{left[0].rstrip(MARK)}`", part)
        per_part.append(axes)
    whole = tuple(
        tuple(
            Factor(tuple(axes[a][f] for axes in per_part), isinstance(factor, list))
            for f, factor in enumerate(axis)
        )
        for a, axis in enumerate(flat)
    )
    return Layout(whole, tuple(tuple(map(tuple, tokens)) for tokens in held))


MARK = "'"
Leaf = ast.Name | ast.Side | ast.Number


def _split(dim: str, splits: tuple[ast.Split, ...]) -> list[Token]:
    """The dims that a dim is split into, or itself."""
    for split in splits:
        if split.dim.text == dim:
            found: list[Token] = []
            for factor in split.group.factors:
                if not isinstance(factor, ast.Name | ast.Number):
                    raise _Wrong("a split is into dims and numbers")
                found.append(f"#{factor.value}" if isinstance(factor, ast.Number) else factor.text)
            return found
    return [dim]


def _factors(axis: ast.LayoutAxis) -> list[ast.LayoutAxis]:
    """The factors of a foreign dim, groups opened."""
    if not isinstance(axis, ast.LayoutGroup):
        return [axis]
    return [inner for factor in axis.factors for inner in _factors(factor)]


def _flat(factor: ast.LayoutAxis) -> Leaf | list[list[Leaf]]:
    """A factor, or the terms of a sum as leaves."""
    if isinstance(factor, ast.LayoutSum):
        terms = [[_flat(inner) for inner in _factors(term)] for term in factor.terms]
        leaves = [[leaf for leaf in term if not isinstance(leaf, list)] for term in terms]
        if [len(term) for term in leaves] != [len(term) for term in terms]:
            raise _Wrong("a sum can't hold another")
        return leaves
    assert isinstance(factor, ast.Name | ast.Side | ast.Number)
    return factor


def _taken(item: Leaf, left: list[Token], param: Param, part: int) -> Token | None:
    """The dim that a leaf means, taken from those left; None for a 1 that stands for nothing."""
    match item:
        case ast.Number(value=value):
            token = f"#{value}"
            if token not in left:
                if value == 1:
                    return None
                raise _Wrong(f"nothing of it is {item.text} long", part)
        case ast.Side(side=side, dim=dim):
            if side.text not in ("in", "out"):
                raise _Wrong(f"`{side.text}` is neither `in` nor `out`", part)
            token = primed(dim.text, param.source) if side.text == "out" else dim.text
        case ast.Name(text=token):
            if token in left and token + MARK in left:
                raise _Wrong(f"say `in.{token}` or `out.{token}`", part)
            token = token + MARK if token not in left and token + MARK in left else token
    if token not in left:
        raise _Wrong(f"it has no `{token.rstrip(MARK)}`, or not twice", part)
    left.remove(token)
    return token


def _names(node: ast.LayoutAxis) -> list[ast.Name]:
    match node:
        case ast.Name():
            return [node]
        case ast.Side(dim=dim):
            return [dim]
        case ast.LayoutGroup(factors=inner) | ast.LayoutSum(terms=inner):
            return [name for each in inner for name in _names(each)]
        case _:
            return []
