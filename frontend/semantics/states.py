"""States of blocks: what a step leaves for the next one by an equation, and not by a gradient.

`total` equations are summed over the samples of a whole step, `update` equations read them.
"""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.frontend import ast
from fllmc.frontend.semantics.infer import Body, Entity
from fllmc.frontend.semantics.typed import (
    BROKEN,
    Composite,
    Constant,
    Kind,
    Local,
    Plain,
    Prim,
    Reduce,
    Size,
    Step,
    Typed,
    Update,
)
from fllmc.frontend.type_errors import BadState

SAMPLES = "batch"
"""The dim of the samples of a step, which micro-batches and devices share out."""


def total(body: Body, item: ast.Total) -> Step | None:
    """`total NAME = VALUE`: known to updates alone, summed over all samples."""
    name, value = item.target.text, body.numbers(item.value, "a total")
    kind = value.kind
    if not kind.broken and SAMPLES not in kind.dims:
        what = f"`{name}` is no total"
        reason = f"{kind} has no dim `{SAMPLES}`: a total is summed over the samples of a step"
        body.found.append(BadState(item.value.span, what, reason))
        kind = BROKEN
    kept = Kind(tuple(dim for dim in kind.dims if dim != SAMPLES), form=kind.form)
    if not body.give(item.target, Entity("total", item.target.span, kept)) or kind.broken:
        return None
    return Step(name, value, total=True)


def update(body: Body, item: ast.Update) -> Update | None:
    """`update STATE = VALUE`, once; None if a mistake was reported."""
    name, where = item.target.text, item.target.span
    entity = body.entities.get(name)
    body.updating = True
    value = body.numbers(item.value, "an update")
    body.updating = False
    if entity is None or entity.param is None or not entity.param.state:
        known = [n for n, each in body.entities.items() if each.param and each.param.state]
        reason = (
            f"states here are {', '.join(f'`{n}`' for n in known)}" if known else "there is none"
        )
        body.found.append(BadState(where, f"`{name}` is no state", reason))
        return None
    if value.kind.broken:
        return None
    totals = {n for n, each in body.entities.items() if each.what == "total"}
    read = sorted({part.op.name for part in parts(value) if isinstance(part.op, Local)} & totals)
    wanted = Kind(entity.param.target)
    reason = next(reasons(value, name, totals), "")
    if not reason and set(value.kind.dims) != set(wanted.dims):
        reason = f"it is {value.kind}, and the state is {wanted}"
    if not reason and (len(read) != 1 or set(body.entities[read[0]].kind.dims) != set(wanted.dims)):
        reason = f"it reads one total, which is {wanted} as the state is"
    if reason:
        body.found.append(BadState(item.value.span, f"this can't update `{name}`", reason))
        return None
    return Update(name, read[0], value)


def parts(value: Typed) -> Iterator[Typed]:
    """An expression and all within it."""
    yield value
    for arg in value.args:
        yield from parts(arg)


def reasons(value: Typed, state: str, totals: set[str]) -> Iterator[str]:
    """What in an expression is known in a step's parts alone, or not to its state."""
    for part in parts(value):
        match part.op:
            case Constant() | Size() | Prim() | Reduce() | Composite():
                pass
            case Plain(param=name) if name == state:
                pass
            case Local(name=name) if name in totals:
                pass
            case Plain(param=name) | Local(name=name):
                yield f"`{name}` is neither the state nor a total"
            case _:
                yield "it is made of the state, a total, numbers, sums and elementwise functions"
