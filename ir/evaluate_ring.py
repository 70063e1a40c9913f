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
    whole = kinds[1].placed(
        Dim(dim.name) if dim.name == attrs.along else dim for dim in kinds[1].dims
    )
    keys, values = (all_gather(gather, kinds[1], parts, mesh) for parts in operands[1:3])
    return (kinds[0], whole, whole, *kinds[3:]), [operands[0], keys, values, *operands[3:]]


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
    by_rank: list[tuple[Array, Array, Array]] = [
        attend_grad(attrs, here._replace(operands=kinds), *mine)
        for here, *mine in zip(heres, *parts, strict=True)
    ]
    d_q, d_k, d_v = zip(*by_rank, strict=True)
    scatter = ReduceScatter(attrs.along, attrs.axes)
    open_kind = Type(kinds[1].dtype, kinds[1].dims, tuple(sorted(bare_axes(attrs.axes))))
    return (d_q, *(reduce_scatter(scatter, open_kind, d, mesh) for d in (d_k, d_v)))
