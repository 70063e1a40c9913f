"""What was decided of rows that go to their experts, in words."""

from __future__ import annotations

from collections.abc import Iterator

from fllmc.ir.ops import ExchangeRows
from fllmc.ir.plan import Decision
from fllmc.ir.program import Program
from fllmc.ir.quantities import bytes_text


def exchanges(program: Program) -> Iterator[Decision]:
    """How rows reach their experts, at each place of the model once, by its widest rows."""
    sizes = program.sizes
    widest: dict[str, tuple[int, int, ExchangeRows]] = {}
    for function in program.functions:
        for op in function.ops:
            if isinstance(op.attrs, ExchangeRows) and not op.attrs.back:
                moved, room = (
                    sizes.local_bytes(function.types[v]) for v in (op.operands[0], op.results[0])
                )
                widest[op.path] = max(
                    widest.get(op.path, (0, 0, op.attrs)),
                    (moved, room, op.attrs),
                    key=lambda found: found[0],
                )
    for path, (moved, room, attrs) in widest.items():
        over = ", ".join(attrs.axes)
        yield Decision(
            path,
            f"only rows that are routed go over {over}: {bytes_text(moved)} of a rank at a time",
            f"`expert_rows: routed`; there is room for the {bytes_text(room)} that may come, and "
            "each exchange waits once until the host knows how many rows go where",
            f"all room, without that wait: {bytes_text(room)} moved",
        )
