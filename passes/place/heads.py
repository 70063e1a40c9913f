"""Which dims of heads are placed together, or one of them not at all."""

from __future__ import annotations

from fllmc.ir.ops import Attend, Recur
from fllmc.ir.program import Op


def shared_heads(op: Op) -> tuple[tuple[str, str], ...]:
    """The dim of an op's heads with the dim of what groups of them share."""
    match op.attrs:
        case Attend(heads=heads, kv_heads=few) | Recur(heads=heads, groups=few) if few:
            return ((heads, few),)
        case _:
            return ()
