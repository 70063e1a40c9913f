"""The built-in functions `part` and `concat`: of a dim some positions, and two dims as one."""

from __future__ import annotations

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.matching import Given
from fllmc.frontend.semantics.typed import Concat, Kind, Part, Requirement, Typed
from fllmc.frontend.type_errors import DimTwice, NoSuchDim, WrongValue


def part(body: Body, given: Given) -> Typed:
    """x with a dim's positions from `first`, as many as another dim has, under its name."""
    (x,) = given.tensors
    of, to = given.words["of"], given.words["to"]
    if to in x.kind.dims:
        found = DimTwice(given.places["to"], to, f"{x.kind} has `{to}` already")
        return body.broken(given.span, found)
    dims = tuple(to if name == of else name for name in x.kind.dims)
    return Typed(Kind(dims), Part(of, to, given.amounts["first"]), (x,), given.span)


def concat(body: Body, given: Given) -> Typed:
    """a, then b along a dim; of the other dims, what one of them lacks is repeated."""
    parts, to = given.named["over"], given.words["to"]
    if len(parts) != 2:
        wanted = "two dims, one of `a` and one of `b`"
        found = WrongValue(given.places["over"], "`over` of `concat`", wanted, "something else")
        return body.broken(given.span, found)
    for value, dim in zip(given.tensors, parts, strict=True):
        if dim not in value.kind.dims:
            where, shown = given.places["over"], str(value.kind)
            missing = NoSuchDim(where, "`concat`", dim, shown, value.kind.dims)
            return body.broken(given.span, missing)
    kinds = [
        tuple(to if name == dim else name for name in value.kind.dims)
        for value, dim in zip(given.tensors, parts, strict=True)
    ]
    dims = (*kinds[0], *(name for name in kinds[1] if name not in kinds[0]))
    if len(kinds[1]) > len(kinds[0]):
        dims = (*kinds[1], *(name for name in kinds[0] if name not in kinds[1]))
    for position, name in enumerate(dims):
        if name in dims[:position]:
            twice = DimTwice(given.span, name, f"`{name}` stands in a value already")
            return body.broken(given.span, twice)
    body.requirements.append(Requirement("sum", to, " ".join(parts), given.span))
    return Typed(Kind(dims), Concat((parts[0], parts[1]), to), given.tensors, given.span)
