"""How recurrences are placed: sequences whole, heads divided, and what heads share copied."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir import ops
from fllmc.ir.program import Op
from fllmc.ir.types import Dim
from fllmc.passes.place.site import Site, Value


def recur(site: Site, op: Op, attrs: ops.Recur) -> Sequence[Value]:
    """Where heads and values are. Groups are where their heads are, or whole if that can't be."""
    kinds = [site.source.types[value] for value in op.operands]
    shared = attrs.groups if attrs.groups != attrs.heads else ""
    names = dict.fromkeys(name for kind in kinds for name in kind.names if name != shared)
    axes = dict(site.layout.axes(names, op.attrs.whole(kinds)))
    on = axes.get(attrs.heads, ())
    sizes = site.mover.build.sizes
    if shared:
        axes[shared] = () if sizes.size(shared) % sizes.mesh.extent(on) else on
    operands = [site.take(value, axes) for value in op.operands]
    if not shared or axes[shared] == on or sizes.size(shared) == 1:
        return site.emit(attrs, *operands)
    return copied(site, attrs, operands)


def copied(site: Site, attrs: ops.Recur, operands: Sequence[int]) -> Sequence[int]:
    """The recurrence or its gradient where groups are whole, and heads are not.

    Each head gets a copy of its group; the copies' gradients are added up.
    """
    q, k, v, *rest = operands
    kind, sizes = site.mover.kind(q), site.mover.build.sizes
    heads = site.mover.kind(v).dim(attrs.heads)
    group = sizes.size(attrs.heads) // sizes.size(attrs.groups)
    (own,) = site.emit(ops.Iota(heads, 0, attrs.groups, group))
    copies = [site.emit(ops.Take(attrs.groups), each, own)[0] for each in (q, k)]
    found = site.emit(structs.replace(attrs, groups=attrs.heads), *copies, v, *rest)
    if not isinstance(attrs, ops.RecurGrad):
        return found
    sums = [site.emit(ops.Put(Dim(attrs.groups)), own, each)[0] for each in found[:2]]
    return (*(site.emit(ops.Transpose(kind.names), each)[0] for each in sums), *found[2:])
