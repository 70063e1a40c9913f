"""What `zero` directives say: which parameters' states are divided, along which dim, and when.

Stored parameter and optimizer state are divided alike at stages 1 to 3 (ZeRO, Rajbhandari et al.
2020). They differ in what is divided during the step:

    stage   parameters as ops use them           sums of gradients over micro-batches
    1       gathered once, whole                 whole; scattered once, after the last micro-batch
    2       gathered once, whole                 divided; scattered for each micro-batch
    3       gathered at each use                 divided; scattered for each micro-batch

At stages 1 and 2 a frozen parameter has no state, so it stays whole and is never moved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import Struct

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.program import Parameter, Program
from fllmc.ir.select import selects_parameter
from fllmc.ir.settings import Zero
from fllmc.ir.types import Sizes
from fllmc.passes.place_errors import NoSuchAxis, SelectsNothing

Axes = Mapping[str, tuple[str, ...]]


class Divided(Struct, frozen=True):
    """The state of a parameter is divided along `dim` over `axes`; an empty dim: it stays whole."""

    stage: int
    dim: str
    axes: tuple[str, ...]
    directive: Zero
    whole_because: str = ""


def zero_text(zero: Zero) -> str:
    """The directive as it is written."""
    axes = zero.axes[0] if len(zero.axes) == 1 else f"({', '.join(zero.axes)})"
    return f"zero {zero.stage} over {axes}" + (
        f" in {zero.selector}" if zero.selector != "*" else ""
    )


def divide(
    zeros: Sequence[Zero], program: Program, placed: Mapping[str, Axes], sizes: Sizes
) -> tuple[dict[str, Divided], list[Diagnostic]]:
    """how selected parameters' states are divided, by name; of several directives the last holds.

    `placed` is how each parameter is placed by other directives, dims before axes.
    """
    found: dict[str, Divided] = {}
    wrong = list(_missing_axes(zeros, sizes))
    for zero in zeros:
        chosen = [p for p in program.parameters if selects_parameter(zero.selector, p)]
        if not chosen:
            paths = tuple(p.shown_name for p in program.parameters)
            wrong.append(SelectsNothing(zero.span, zero.selector, paths))
        axes = tuple(a for a in zero.axes if sizes.mesh.has(a) and sizes.mesh.extent((a,)) > 1)
        for parameter in chosen:
            found.pop(parameter.name, None)
            if axes:
                found[parameter.name] = divided(
                    parameter, zero, axes, placed[parameter.name], sizes
                )
    return found, wrong


def divided(
    parameter: Parameter, zero: Zero, axes: tuple[str, ...], placed: Axes, sizes: Sizes
) -> Divided:
    """How one parameter's state is divided, or why it stays whole."""
    if not parameter.trainable and zero.stage < 3:
        return Divided(zero.stage, "", axes, zero, "it is frozen, so it has no state to divide")
    dim = dim_to_divide(parameter, axes, placed, sizes)
    why = "" if dim else f"no dim of it is a multiple of {sizes.mesh.extent(axes)}"
    return Divided(zero.stage, dim, axes, zero, why)


def dim_to_divide(parameter: Parameter, axes: tuple[str, ...], placed: Axes, sizes: Sizes) -> str:
    """The largest dim that the axes divide evenly, of those not placed if there is one; or nothing.

    The dim of a stack is not divided: each layer's gradient is scattered as soon as it is there.
    """
    parts = sizes.mesh.extent(axes)
    best: tuple[bool, int] | None = None
    found = ""
    for name in parameter.type.names:
        on = placed.get(name, ())
        local = sizes.size(name) // sizes.mesh.extent(on)
        key = (not on, local)
        if name != parameter.stack and local % parts == 0 and (best is None or key > best):
            best, found = key, name
    return found


def _missing_axes(zeros: Sequence[Zero], sizes: Sizes) -> list[Diagnostic]:
    """A warning for each axis that the mesh lacks; none on one device, where nothing is divided."""
    found: dict[str, Diagnostic] = {}
    for zero in zeros if sizes.mesh.size > 1 else ():
        for axis in zero.axes:
            if not sizes.mesh.has(axis):
                what = f"what `{zero_text(zero)}` selects"
                found.setdefault(axis, NoSuchAxis(zero.span, axis, what, str(sizes.mesh)))
    return list(found.values())
