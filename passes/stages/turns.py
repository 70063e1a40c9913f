"""Orders of work for pipelines."""

from __future__ import annotations

from fllmc.ir.timetable import Action, Timetable


def one_forward_one_backward(ranks: int, micros: int) -> Timetable:
    """1F1B: a rank goes ahead by as many micro-batches as there are stages behind it."""
    rows: list[tuple[Action, ...]] = []
    for rank in range(ranks):
        ahead = min(micros, ranks - rank)
        row = [Action("F", rank, micro) for micro in range(ahead)]
        for micro in range(micros):
            row.append(Action("B", rank, micro))
            if micro + ahead < micros:
                row.append(Action("F", rank, micro + ahead))
        rows.append(tuple(row))
    return Timetable("1f1b", ranks, ranks, micros, tuple(range(ranks)), tuple(rows))


def all_forward_all_backward(ranks: int, micros: int) -> Timetable:
    """GPipe (Huang et al. 2019)."""
    rows = tuple(
        tuple(Action(kind, rank, micro) for kind in ("F", "B") for micro in range(micros))
        for rank in range(ranks)
    )
    return Timetable("gpipe", ranks, ranks, micros, tuple(range(ranks)), rows)
