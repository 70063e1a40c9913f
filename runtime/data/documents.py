"""Tokens of a source, one document behind the other, and numbers that belong to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.runtime.data.tokenizers import Tokens

Array = npt.NDArray[Any]
Places = npt.NDArray[np.int64]


class Joined:
    """Arrays read as one, in their order. Nothing is copied together: they may be mapped files."""

    def __init__(self, parts: Sequence[Array]) -> None:
        self.parts = tuple(part for part in parts if len(part)) or (np.empty(0, np.uint8),)
        self.ends = np.cumsum([len(part) for part in self.parts], dtype=np.int64)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def read(self, start: int, stop: int) -> Array:
        """The elements from `start` to `stop`, fewer where the end comes first."""
        stop = min(stop, len(self))
        found: list[Array] = []
        at = int(np.searchsorted(self.ends, start, side="right"))
        while start < stop:
            first = int(self.ends[at]) - len(self.parts[at])
            found.append(self.parts[at][start - first : stop - first])
            start, at = int(self.ends[at]), at + 1
        return found[0] if len(found) == 1 else np.concatenate([self.parts[0][:0], *found])

    def whole(self) -> Array:
        """All elements in memory."""
        return self.read(0, len(self))


class Documents(msgspec.Struct, frozen=True):
    """Tokens, and where each document ends: `ends[-1]` is the number of tokens.

    `counts` weighs each token as something to be learned, all alike where it is None. `columns`
    are further numbers for each token.
    """

    tokens: Joined
    ends: Places
    counts: Joined | None = None
    columns: Mapping[str, Joined] = {}

    def first_behind(self, place: int) -> int:
        """Where the first document begins that does so at `place` or behind it."""
        at = int(np.searchsorted(self.ends, place, side="left"))
        return 0 if place <= 0 else int(self.ends[min(at, len(self.ends) - 1)])

    def largest(self) -> int:
        """The largest token; a part is read at a time."""
        return max(int(stretch.max()) for stretch in self.stretches())

    def stretches(self, size: int = 1 << 24) -> Sequence[Tokens]:
        """All tokens, up to `size` at a time."""
        count = max(1, len(self.tokens))
        return [self.tokens.read(at, at + size) for at in range(0, count, size)]


def plain(tokens: Tokens) -> Documents:
    """Tokens as one document."""
    return Documents(Joined([tokens]), np.array([len(tokens)], np.int64))


class Written(msgspec.Struct, frozen=True):
    """One document with what belongs to each of its tokens."""

    tokens: Tokens
    counts: npt.NDArray[np.float32] | None = None
    columns: Mapping[str, npt.NDArray[np.float32]] = {}


def gathered(written: Sequence[Written], columns: Sequence[str]) -> Documents:
    """Documents one behind the other; empty ones are left out."""
    kept = [each for each in written if len(each.tokens)]
    ends = np.cumsum([len(each.tokens) for each in kept], dtype=np.int64)
    counts = None
    if any(each.counts is not None for each in kept):
        counts = _together(
            [np.ones(len(e.tokens), np.float32) if e.counts is None else e.counts for e in kept]
        )
    more = {name: _together([each.columns[name] for each in kept]) for name in columns}
    return Documents(_together([each.tokens for each in kept]), ends, counts, more)


def _together(arrays: Sequence[Array]) -> Joined:
    return Joined([np.concatenate(arrays)] if arrays else [])
