"""Whether a `checkpoint` section speaks of every parameter exactly once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fllmc.frontend import ast
from fllmc.frontend.checkpoint_errors import CoveredTwice, NotCovered
from fllmc.frontend.semantics.foreign_lines import Line, Names, Spot
from fllmc.frontend.semantics.typed import Block, Key, Param
from fllmc.ir.diagnostics import Diagnostic


def parameters(
    key: Key, blocks: Mapping[Key, Block], before: str = ""
) -> Iterator[tuple[str, str, Param]]:
    """The parameters under a block: path, place as written, and what was declared."""
    for member in blocks[key].members:
        if isinstance(member, Param):
            yield before + member.name, before + member.name, member
            continue
        for name, place, param in parameters(member.block, blocks):
            if member.period:
                place = place.split(".", 1)[1]
            index = "[i]" if member.over else ""
            yield f"{member.name}.{name}", f"{member.name}{index}.{place}", param


def uncovered(
    names: Names, section: ast.Checkpoint, blocks: Mapping[Key, Block]
) -> Iterator[Diagnostic]:
    """Parameters that no line speaks of, and those that two speak of."""
    covered: dict[str, list[tuple[Spot, Line]]] = {}
    for line in names.lines:
        for spot in line.spots:
            for name in spot.names:
                for other, earlier in covered.get(name, ()):
                    if overlap(spot, other):
                        yield CoveredTwice(line.span, "parameter", name, earlier.span)
                        return
                covered.setdefault(name, []).append((spot, line))
    for name, place, param in parameters(names.subject, blocks):
        if name not in covered:
            what, where = f"`{name}`", section.name
            dims = ", ".join(param.stored)
            missing = f"`{name}`"
            subject = names.subject.name
            yield NotCovered(where.span, where.text, subject, what, missing, place, dims)


def overlap(a: Spot, b: Spot) -> bool:
    """Whether two spots of one parameter have elements in common."""
    pairs = zip(a.indexed, b.indexed, strict=False)
    return not any(isinstance(x, int) and isinstance(y, int) and x != y for (_, x), (_, y) in pairs)
