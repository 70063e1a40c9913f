"""What placement decided of parameters, for the plan and its reports."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec import Struct

from fllmc.ir.program import Program
from fllmc.ir.settings import Shard, Zero
from fllmc.ir.span import Span
from fllmc.ir.types import Type
from fllmc.passes.place.directives import Because, Layout, resolve
from fllmc.passes.place.zero import zero_text


class Reason(Struct, frozen=True):
    """A dim of a parameter is on an axis because of a directive, `stored` if only when stored."""

    dim: str
    axis: str
    stored: bool
    directive: str
    span: Span


class Decision(Struct, frozen=True):
    """How one parameter is placed: as it is stored, and as ops use it, after any gathers.

    `often` says when it is gathered, and `left_whole` why a `zero` directive leaves it whole.
    """

    parameter: str
    stored: Type
    compute: Type
    reasons: tuple[Reason, ...]
    often: str = ""
    left_whole: str = ""


def decisions(
    program: Program, shards: Sequence[Shard], zeros: Sequence[Zero] = ()
) -> tuple[Decision, ...]:
    """How each parameter of a sharded program is placed, and by which directives."""
    layout = resolve(shards, program.mesh, program, zeros).layout
    return tuple(
        Decision(
            parameter.name,
            layout.place_parameter(parameter.name, parameter.type.unplaced()),
            layout.place(parameter.type.unplaced()),
            tuple(_reasons(layout, parameter.name, parameter.type)),
            "once a step" if layout.gathered_once(parameter.name) else "where it is used",
            _left_whole(layout, parameter.name),
        )
        for parameter in program.parameters
    )


def _reasons(layout: Layout, name: str, kind: Type) -> Iterator[Reason]:
    for because in layout.reasons:
        if because.dim in kind.names:
            yield _reason(because, stored=False)
    for because in layout.stored_reasons.get(name, ()):
        yield _reason(because, stored=True)


def _reason(because: Because, stored: bool) -> Reason:
    return Reason(because.dim, because.axis, stored, because.text, because.span)


def _left_whole(layout: Layout, name: str) -> str:
    found = layout.zero.get(name)
    if found is None or found.dim:
        return ""
    return f"`{zero_text(found.directive)}` leaves it whole: {found.whole_because}"
