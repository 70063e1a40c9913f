"""One sample as the columns that a run reads: tokens, what follows them, and what counts.

Every column is `[seq]`. That of place i says something about token i (`tokens`, `starts`,
`positions`, `documents`) or about the token that follows it, which is to be predicted (`targets`,
`weights`, and all numbers that come with the data).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.runtime.data.documents import Array, Documents, Places

GIVEN = ("tokens", "targets", "weights", "starts", "positions", "documents", "samples")
"""The columns that all data has."""


class Row(msgspec.Struct, frozen=True):
    """Consecutive tokens with their numbers; `belongs` is the ordinal of each one's document."""

    tokens: Places
    belongs: Places
    counts: npt.NDArray[np.float32]
    columns: Mapping[str, npt.NDArray[np.float32]]


class Reading(msgspec.Struct, frozen=True):
    """How samples are read: whether documents are kept `apart`, and the column that weighs."""

    apart: bool = False
    mask: str = ""
    columns: tuple[str, ...] = ()


def read_row(documents: Documents, start: int, stop: int, reading: Reading) -> Row:
    """The tokens from `start` to `stop`; those behind the end are 0 and count nothing."""
    count, tokens = stop - start, np.zeros(stop - start, np.int64)
    found = documents.tokens.read(start, stop)
    tokens[: len(found)] = found
    first, last = np.searchsorted(documents.ends, [start, stop - 1], side="right")
    cuts = documents.ends[first:last] - start
    belongs = np.searchsorted(cuts, np.arange(count), side="right").astype(np.int64)
    counts = np.zeros(count, np.float32)
    counts[: len(found)] = documents.counts.read(start, stop) if documents.counts else 1.0
    names = dict.fromkeys((*reading.columns, *((reading.mask,) if reading.mask else ())))
    columns = {name: _column(documents, name, start, stop) for name in names}
    if reading.mask:
        counts = counts * columns[reading.mask]
    return Row(tokens, belongs, counts, columns)


def _column(documents: Documents, name: str, start: int, stop: int) -> npt.NDArray[np.float32]:
    """A column of the data; where a part of a mixture lacks it, it is 1: everything counts."""
    column = np.ones(stop - start, np.float32)
    if name in documents.columns:
        found = documents.columns[name].read(start, stop)
        column[: len(found)] = found
    return column


def predicted(row: Row, apart: bool) -> dict[str, Array]:
    """The columns of a row: one place fewer than it has tokens.

    Of documents kept apart, what follows the last token is not to be predicted from it. Else all is
    one document.
    """
    belongs = row.belongs if apart else np.zeros_like(row.belongs)
    within = belongs[:-1]
    places = np.arange(len(within), dtype=np.int64)
    begins = np.concatenate([[True], within[1:] != within[:-1]])[: len(within)]
    starts = np.maximum.accumulate(np.where(begins, places, 0)) if len(within) else places
    follows = belongs[1:] == within
    return {
        **{name: column[1:] for name, column in row.columns.items()},
        "tokens": row.tokens[:-1],
        "targets": row.tokens[1:],
        "weights": np.where(follows, row.counts[1:], np.float32(0)),
        "starts": starts,
        "positions": places - starts,
        "documents": within - within[:1],
    }


def packed(pieces: Sequence[dict[str, Array]], seq: int) -> dict[str, Array]:
    """Pieces one behind the other, then padding to `seq`, a document of its own, weighing 0."""
    used = sum(len(piece["tokens"]) for piece in pieces)
    left = seq - used
    nothing = np.zeros(left, np.int64)
    pad: dict[str, Array] = {name: np.zeros(left, np.float32) for name in pieces[0]}
    pad |= dict.fromkeys(("tokens", "targets", "starts", "documents"), nothing)
    pad["positions"] = np.arange(left, dtype=np.int64)
    shifted: list[dict[str, Array]] = []
    at = 0
    for number, piece in enumerate([*pieces, pad]):
        shift = {"starts": piece["starts"] + at, "documents": piece["documents"] + number}
        shifted.append({**piece, **shift})
        at += len(piece["tokens"])
    return {name: np.concatenate([piece[name] for piece in shifted]) for name in pieces[0]}
