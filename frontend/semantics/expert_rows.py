"""Nothing runs along the rows of experts: how many each expert has is known at run time alone.

On a mesh that divides experts there are more rows than choices, and those left over are zeros. So
what an equation says of the rows all together would not be what is meant.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from fllmc.frontend.semantics.typed import (
    Attend,
    Block,
    Composite,
    Concat,
    Contract,
    Dispatch,
    ExpertDot,
    ExpertTake,
    Join,
    OneHot,
    Param,
    Pick,
    Positions,
    Reduce,
    Renamed,
    Rope,
    Shift,
    Split,
    TopK,
    Typed,
)
from fllmc.frontend.type_errors import BadExperts
from fllmc.ir.diagnostics import Diagnostic


def along_rows(blocks: Iterable[Block]) -> Iterator[Diagnostic]:
    """Equations of the blocks that run along rows of experts, and parameters that have them."""
    known = list(blocks)
    found = [typed for block in known for typed in expressions(block)]
    rows = {name for typed in found for name in made(typed)}
    for typed in found:
        for name in worked_along(typed):
            if name in rows:
                yield said(typed, name)
    for block in known:
        for member in block.members:
            if isinstance(member, Param) and rows & set(member.stored):
                reason = f"`{member.name}` has rows of experts, which are no positions"
                yield BadExperts(member.shape, f"`{member.name}`", reason)


def said(typed: Typed, name: str) -> Diagnostic:
    """What is wrong with an equation along the rows."""
    reason = f"this runs along `{name}`, the rows of experts, whose number only a run knows"
    return BadExperts(typed.span, "an equation", reason)


def expressions(block: Block) -> Iterator[Typed]:
    """All expressions of a block, parts behind the whole."""
    todo = [block.returned, *(step.value for step in block.steps)]
    while todo:
        typed = todo.pop()
        yield typed
        todo += typed.args


def made(typed: Typed) -> tuple[str, ...]:
    """The dim of rows that an expression speaks of."""
    match typed.op:
        case Dispatch(to=(rows,)) | ExpertDot(rows=rows) | ExpertTake(rows=rows):
            return (rows,)
        case _:
            return ()


def worked_along(typed: Typed) -> tuple[str, ...]:
    """The dims that an expression treats as a whole, renames, or counts."""
    match typed.op:
        case Reduce(dims=dims) | Contract(dims=dims) | Composite(over=dims):
            return dims
        case ExpertDot(contract=dims):
            return dims
        case Positions(dim=dim) | TopK(over=dim) | Pick(dim=dim) | OneHot(dim=dim):
            return (dim,)
        case Concat(first=first, second=second):
            return (first, second)
        case Split(dim=dim) | Shift(dim=dim):
            return (dim,)
        case Join(outer=outer, inner=inner):
            return (outer, inner)
        case Renamed(pairs=pairs):
            return tuple(old for old, _ in pairs)
        case Rope(along=along, dim=dim):
            return (along, dim)
        case Attend(along=along, heads=heads, dim=dim):
            return (along, heads, dim)
        case _:
            return ()
