"""Texts of tensor views: matrices out of named dims, and operands aligned for broadcasting."""

from __future__ import annotations

import json
from collections.abc import Sequence

from fllmc.ir.types import Sizes, Type


def shape_text(shape: Sequence[int | str]) -> str:
    """A Python tuple."""
    return "(" + ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "") + ")"


def quoted(text: str) -> str:
    """A Python string literal; whatever the text holds, it can't end the literal or the line."""
    return json.dumps(text, ensure_ascii=False)


def product(numbers: Sequence[int]) -> int:
    """The product, 1 for none."""
    total = 1
    for number in numbers:
        total *= number
    return total


def matrix(name: str, kind: Type, sizes: Sizes, groups: Sequence[Sequence[str]]) -> str:
    """`name` viewed with one dim for each group of dims, in the groups' order.

    Each group must be a run of dims in memory. An empty first group (no batch) is left out, other
    empty groups have size 1.
    """
    extent = dict(zip(kind.names, sizes.local_shape(kind), strict=True))
    wanted = [tuple(group) for group in groups]
    if not wanted[0] and len(wanted) == 3:
        wanted = wanted[1:]
    memory = sorted(
        range(len(wanted)), key=lambda g: kind.names.index(wanted[g][0]) if wanted[g] else -1
    )
    shape = [product([extent[dim] for dim in wanted[g]]) for g in memory]
    text = f"{name}.view({shape_text(shape)})"
    order = [memory.index(g) for g in range(len(wanted))]
    if order == sorted(order):
        return text
    return f"{text}.t()" if len(order) == 2 else f"{text}.permute({shape_text(order)})"


def aligned(
    name: str, names: Sequence[str], shape: Sequence[int], wanted: Sequence[str], lead: int = 0
) -> str:
    """`name` viewed so that it broadcasts by position against a tensor of dims `wanted`.

    The first `lead` dims of `shape` are rows, which both have and which are not in `names`.
    """
    if list(names) == list(wanted)[len(wanted) - len(names) :] and (
        not lead or len(names) == len(wanted)
    ):
        return name
    order = sorted(range(len(names)), key=lambda i: list(wanted).index(names[i]))
    text = name
    if order != list(range(len(names))):
        text += f".permute({shape_text([*range(lead), *(lead + i for i in order)])})"
    extent = dict(zip(names, shape[lead:], strict=True))
    full = [extent.get(dim, 1) for dim in wanted]
    if not lead:
        while full and full[0] == 1 and wanted[len(wanted) - len(full)] not in extent:
            full = full[1:]
    index = ", ".join(
        [":"] * lead + [":" if d in extent else "None" for d in wanted[len(wanted) - len(full) :]]
    )
    return f"{text}[{index}]"
