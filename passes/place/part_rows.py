"""Where rows are stored that train beside frozen ones of one parameter; see `split_rows.py`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from msgspec import structs

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.program import Program
from fllmc.ir.types import Sizes
from fllmc.passes.place_errors import RowsLeftWhole

if TYPE_CHECKING:
    from fllmc.passes.place.directives import Because

Axes = Mapping[str, tuple[str, ...]]


def place_rows(
    program: Program,
    sizes: Sizes,
    canonical: Axes,
    reasons: Sequence[Because],
    stored: dict[str, Axes],
    stored_reasons: dict[str, tuple[Because, ...]],
) -> Iterable[Diagnostic]:
    """Store trained rows divided as the rows of the whole are, where their number allows that.

    They are put at their places in the whole, so where that is divided each rank needs them all.
    """
    for part in program.parameters:
        if not part.part_of:
            continue
        whole = program.parameter(part.part_of)
        axes = stored.get(whole.name, canonical).get(whole.row_dim, ())
        because = [r for r in (*reasons, *stored_reasons.get(whole.name, ())) if r.axis in axes]
        because = [r for r in because if r.dim == whole.row_dim]
        count, extent = sizes.size(part.row_dim), sizes.mesh.extent(axes)
        if axes and count % extent:
            yield RowsLeftWhole(because[0].span, whole.name, count, axes[0], extent)
        elif axes:
            stored[part.name] = {**stored.get(part.name, canonical), part.row_dim: axes}
            own = tuple(structs.replace(reason, dim=part.row_dim) for reason in because)
            stored_reasons[part.name] = (*stored_reasons.get(part.name, ()), *own)
