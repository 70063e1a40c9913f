"""The known pipeline schedules, each from the numbers of ranks, micro-batches and chunks.

`gpipe` (Huang et al. 2019), `1f1b` (PipeDream-Flush, Narayanan et al. 2021), `interleaved`
(Narayanan et al. 2021, section 2.2.2), `breadth_first` (Lamy-Poirier 2023), `zb_h1` (Qi et al.
2023, section 2) and `zb_v` (Qi et al. 2024, section 4).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from fllmc.ir.timetable import Action, Kind, Timetable

Row = list[Action]


def looped(ranks: int, stages: int) -> tuple[int, ...]:
    """Stage s on rank s mod ranks."""
    return tuple(stage % ranks for stage in range(stages))


def folded(ranks: int) -> tuple[int, ...]:
    """Two stages a rank, the second half on the way back: rank r has r and 2 ranks - 1 - r."""
    return (*range(ranks), *reversed(range(ranks)))


def actions(kind: Kind, stage: int, micros: Sequence[int]) -> Row:
    """The same work for several micro-batches."""
    return [Action(kind, stage, micro) for micro in micros]


def finished(name: str, homes: tuple[int, ...], micros: int, rows: Sequence[Row]) -> Timetable:
    """The timetable of these rows."""
    return Timetable(name, len(rows), len(homes), micros, homes, tuple(map(tuple, rows)))


def gpipe(ranks: int, micros: int, chunks: int = 1) -> Timetable:
    """All micro-batches forward, then all backward."""
    return breadth_first(ranks, micros, chunks, "gpipe")


def breadth_first(ranks: int, micros: int, chunks: int, name: str = "breadth_first") -> Timetable:
    """Each chunk with all micro-batches, forward in the order of stages, then backward."""
    every = range(micros)
    rows: list[Row] = []
    for rank in range(ranks):
        stages = [chunk * ranks + rank for chunk in range(chunks)]
        row = [action for stage in stages for action in actions("F", stage, every)]
        row += [action for stage in reversed(stages) for action in actions("B", stage, every)]
        rows.append(row)
    return finished(name, looped(ranks, ranks * chunks), micros, rows)


def one_f_one_b(ranks: int, micros: int, chunks: int = 1) -> Timetable:
    """As few forwards ahead as keep every rank busy, then one forward, one backward."""
    rows: list[Row] = []
    for rank in range(ranks):
        ahead = min(ranks - rank, micros)
        row = actions("F", rank, range(ahead))
        for micro in range(micros):
            row.append(Action("B", rank, micro))
            if ahead + micro < micros:
                row.append(Action("F", rank, ahead + micro))
        rows.append(row)
    return finished("1f1b", looped(ranks, ranks), micros, rows)


def interleaved(ranks: int, micros: int, chunks: int) -> Timetable:
    """1F1B over chunks: groups of `ranks` micro-batches go through one chunk after the other."""
    total = micros * chunks

    def at(position: int, backward: bool) -> tuple[int, int]:
        """Chunk and micro-batch of the position-th forward or backward of any rank."""
        group, inside = divmod(position, ranks * chunks)
        chunk = inside // ranks
        return (chunks - 1 - chunk if backward else chunk), group * ranks + inside % ranks

    rows: list[Row] = []
    for rank in range(ranks):

        def action(kind: Kind, position: int, rank: int = rank) -> Action:
            chunk, micro = at(position, kind == "B")
            return Action(kind, chunk * ranks + rank, micro)

        ahead = min(2 * (ranks - rank - 1) + (chunks - 1) * ranks, total)
        row = [action("F", position) for position in range(ahead)]
        for position in range(total):
            if ahead + position < total:
                row.append(action("F", ahead + position))
            row.append(action("B", position))
        rows.append(row)
    return finished("interleaved", looped(ranks, ranks * chunks), micros, rows)


def zb_h1(ranks: int, micros: int, chunks: int = 1) -> Timetable:
    """1F1B whose weight gradients come later on later ranks, and fill the end.

    Rank r puts them off by r micro-batches, which is what 1F1B keeps less there, so no rank keeps
    more than the first of 1F1B.
    """
    rows: list[Row] = []
    for rank in range(ranks):
        ahead = min(ranks - rank, micros)
        row = actions("F", rank, range(ahead))
        for micro in range(micros):
            row.append(Action("I", rank, micro))
            if micro >= rank:
                row.append(Action("W", rank, micro - rank))
            if ahead + micro < micros:
                row.append(Action("F", rank, ahead + micro))
        row += actions("W", rank, range(max(0, micros - rank), micros))
        rows.append(row)
    return finished("zb_h1", looped(ranks, ranks), micros, rows)


def zb_v(ranks: int, micros: int, chunks: int = 2) -> Timetable:
    """Two stages a rank in the shape of a V: no bubble where F, I and W take the same time."""
    rows = [_v_row(rank, ranks, micros) for rank in range(ranks)]
    return finished("zb_v", folded(ranks), micros, rows)


def _v_row(rank: int, ranks: int, micros: int) -> Row:
    there, back = rank, 2 * ranks - 1 - rank
    done = {(kind, stage): 0 for kind in ("F", "I", "W") for stage in (there, back)}
    row: Row = []

    def add(kind: Kind, stage: int) -> None:
        """The next micro-batch's action, if there is one and what it needs is done."""
        needs = {"F": micros, "I": done["F", stage], "W": done["I", stage]}[kind]
        if done[kind, stage] < needs:
            row.append(Action(kind, stage, done[kind, stage]))
            done[kind, stage] += 1

    for _ in range(2 * (ranks - rank) - 1):
        add("F", there)
    for _ in range(rank):
        add("F", back)
        add("F", there)
    for _ in range(ranks - rank):
        for kind in ("F", "I", "W"):
            add(kind, back)
    while done["F", there] < micros or done["F", back] < done["F", there]:
        add("F", there)
        for stage in (there, back):
            if stage == back:
                add("F", back)
            add("I", stage)
            add("W", stage)
    for _ in range(rank):
        add("I", there)
        add("I", back)
    for _ in range(micros):
        add("I", there)
        add("W", there)
    for stage in (back, there):
        for _ in range(micros):
            add("I", stage)
            add("W", stage)
    return row


FAMILIES: Final[Mapping[str, Callable[[int, int, int], Timetable]]] = {
    "gpipe": gpipe,
    "1f1b": one_f_one_b,
    "interleaved": interleaved,
    "breadth_first": breadth_first,
    "zb_h1": zb_h1,
    "zb_v": zb_v,
}
"""Schedules by name: from ranks, micro-batches and chunks."""
