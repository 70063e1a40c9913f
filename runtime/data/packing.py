"""Samples of whole documents: as many as fit, then padding that counts nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import msgspec
import numpy as np

from fllmc.ir import philox
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors
from fllmc.runtime.data.documents import Array, Documents, Places
from fllmc.runtime.data.middle import Middles, rearranged
from fllmc.runtime.data.rows import Reading, packed, predicted, read_row
from fllmc.runtime.data.windows import Batch, Rows, batch_of


class Pieces(msgspec.Struct, frozen=True):
    """Stretches of documents, `lengths` places of a sample each and one token more."""

    starts: Places
    lengths: Places


def pieces_of(documents: Documents, first: int, stop: int, seq: int) -> Pieces:
    """The documents between two places that are ends of documents.

    One of more than `seq` + 1 tokens is several pieces, each of which begins with the last token of
    the one before it; one of a single token has nothing to predict and is left out.
    """
    low, high = np.searchsorted(documents.ends, [first, stop], side="right")
    ends = np.minimum(documents.ends[low : high + 1], stop)
    ends = np.unique(ends[ends > first])
    begins = np.concatenate([[first], ends[:-1]]).astype(np.int64)
    places = ends - begins - 1
    counts = -(-places // seq)
    of = np.repeat(np.arange(len(ends)), counts)
    number = np.arange(len(of)) - np.repeat(np.cumsum(counts) - counts, counts)
    starts = begins[of] + number * seq
    return Pieces(starts, np.minimum(seq, places[of] - number * seq))


def bins_of(lengths: Places, seq: int) -> list[list[int]]:
    """Pieces by the samples that they go in: the longest first, each where it leaves least room."""
    rooms: list[list[int]] = [[] for _ in range(seq + 1)]
    have = 0  # bit r: some sample has room for r places
    bins: list[list[int]] = []
    for piece in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[piece])
        fitting = have >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            bin_ = rooms[room].pop()
            if not rooms[room]:
                have &= ~(1 << room)
        else:
            room, bin_ = seq, len(bins)
            bins.append([])
        bins[bin_].append(piece)
        if room > length:
            rooms[room - length].append(bin_)
            have |= 1 << (room - length)
    return bins


class Packed:
    """Samples of whole documents from a stretch of the data, numbered without end.

    Which documents share a sample is fixed; samples are taken in an order of their own in each
    epoch, a pure function of the seed.
    """

    def __init__(
        self,
        documents: Documents,
        first: int,
        stop: int,
        seq: int,
        seed: int,
        source: str = "",
        span: Span = NOWHERE,
        *,
        reading: Reading | None = None,
        middles: Middles | None = None,
    ) -> None:
        self.documents, self.seq, self.seed, self.count = documents, seq, seed, stop - first
        self.reading, self.middles = reading or Reading(apart=True), middles
        self.pieces = pieces_of(documents, first, stop, seq)
        self.bins = bins_of(self.pieces.lengths, seq)
        self.samples = len(self.bins)
        if not self.bins:
            part = "held-out" if first else "training"
            few = errors.TooFewTokens(span, source, part, self.count, seq, 2)
            raise DiagnosticError(few)
        self._order = lru_cache(maxsize=2)(self._order_of)

    def _order_of(self, epoch: int) -> Rows:
        key = philox.stream_key("packed", self.seed)
        return philox.permutation(key, self.samples, epoch)

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count` of the run."""
        chosen: list[int] = []
        for sample in range(first, first + count):
            epoch, within = divmod(sample, self.samples)
            chosen.append(int(self._order(epoch)[within]))
        numbers = range(first, first + count)
        return batch_of([self.row(b, n) for b, n in zip(chosen, numbers, strict=True)])

    def row(self, number: int, sample: int) -> dict[str, Array]:
        """One sample; the order within is that of the data."""
        return packed(list(self._parts(sorted(self.bins[number]), sample)), self.seq)

    def _parts(self, pieces: Sequence[int], sample: int) -> Iterator[dict[str, Array]]:
        for at, piece in enumerate(pieces):
            start, length = int(self.pieces.starts[piece]), int(self.pieces.lengths[piece])
            row = read_row(self.documents, start, start + length + 1, self.reading)
            yield predicted(rearranged(row, self.middles, sample * self.seq + at), True)


class PackedInOrder:
    """The same for validation: every sample once, in a fixed order, then empty ones."""

    def __init__(self, packed_: Packed) -> None:
        self.packed, self.count, self.samples = packed_, packed_.count, packed_.samples

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count`; those past the end have weight 0."""
        rows: list[dict[str, Array]] = []
        for sample in range(first, first + count):
            row = self.packed.row(min(sample, self.samples - 1), sample)
            if sample >= self.samples:
                row = {**row, "weights": np.zeros_like(row["weights"])}
            rows.append(row)
        return batch_of(rows)
