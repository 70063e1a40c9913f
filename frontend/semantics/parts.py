"""The built-in function `part`: of a dim some positions."""

from __future__ import annotations

from fllmc.frontend.semantics.infer import Body
from fllmc.frontend.semantics.matching import Given
from fllmc.frontend.semantics.typed import Kind, Part, Typed
from fllmc.frontend.type_errors import DimTwice


def part(body: Body, given: Given) -> Typed:
    """x with a dim's positions from `first`, as many as another dim has, under its name."""
    (x,) = given.tensors
    of, to = given.words["of"], given.words["to"]
    if to in x.kind.dims:
        found = DimTwice(given.places["to"], to, f"{x.kind} has `{to}` already")
        return body.broken(given.span, found)
    dims = tuple(to if name == of else name for name in x.kind.dims)
    return Typed(Kind(dims), Part(of, to, given.amounts["first"]), (x,), given.span)
