"""What ring attention gives: attention to all keys, whose gradients are summed where they live."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.evaluate_attention import attend, attend_grad
from fllmc.ir.evaluate_parts import Array, Here, Parts, all_gather, reduce_scatter
from fllmc.ir.ops import AllGather, ReduceScatter, RingAttend, RingAttendGrad
from fllmc.ir.types import Dim, Mesh, Type, bare_axes


def gathered(
    attrs: RingAttend, kinds: Sequence[Type], operands: Sequence[Parts], mesh: Mesh
) -> tuple[tuple[Type, ...], list[Parts]]:
    """The operands with keys and values whole, and their types."""
    gather = AllGather(attrs.along, attrs.axes)
    whole = [
        kind.placed(Dim(dim.name) if dim.name == attrs.along else dim for dim in kind.dims)
        for kind in kinds[1:3]
    ]
    both = zip(kinds[1:3], operands[1:3], strict=True)
    found = [all_gather(gather, kind, parts, mesh) for kind, parts in both]
    return (kinds[0], *whole, *kinds[3:]), [operands[0], *found, *operands[3:]]


def ring_attend(
    attrs: RingAttend, heres: Sequence[Here], operands: Sequence[Parts]
) -> tuple[Parts, ...]:
    """Each rank's queries against all keys."""
    kinds, parts = gathered(attrs, heres[0].operands, operands, heres[0].sizes.mesh)
    by_rank = [
        attend(attrs, here._replace(operands=kinds), *mine)
        for here, *mine in zip(heres, *parts, strict=True)
    ]
    return tuple(zip(*by_rank, strict=True))


def ring_attend_grad(
    attrs: RingAttendGrad, heres: Sequence[Here], operands: Sequence[Parts]
) -> tuple[Parts, ...]:
    """The ranks' shares of the keys' and values' gradients, summed and dealt out again."""
    mesh = heres[0].sizes.mesh
    kinds, parts = gathered(attrs, heres[0].operands, operands, mesh)
    by_rank: list[tuple[Array, ...]] = [
        attend_grad(attrs, here._replace(operands=kinds), *mine)
        for here, *mine in zip(heres, *parts, strict=True)
    ]
    d_q, d_k, d_v, *extras = zip(*by_rank, strict=True)
    scatter = ReduceScatter(attrs.along, attrs.axes)
    found: list[Parts] = []
    for kind, parts in ((kinds[1], d_k), (kinds[2], d_v)):
        open_kind = Type(kind.dtype, kind.dims, tuple(sorted(bare_axes(attrs.axes))))
        found.append(reduce_scatter(scatter, open_kind, parts, mesh))
    return (d_q, *found, *extras)
