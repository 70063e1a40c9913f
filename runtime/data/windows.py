"""Samples: which tokens the n-th sample of a run is, for any n, on any process."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

import msgspec
import numpy as np
import numpy.typing as npt

from fllmc.ir import philox
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors
from fllmc.runtime.data.tokenizers import Tokens

Rows = npt.NDArray[np.int64]
Weights = npt.NDArray[np.float32]


class Batch(msgspec.Struct, frozen=True):
    """Samples `[batch, seq]`: tokens, the tokens that follow them, and each target's weight."""

    tokens: Rows
    targets: Rows
    weights: Weights


class Windows:
    """Training samples: stretches of `seq` tokens, each with the token behind every one of them.

    An epoch cuts the tokens into windows that do not overlap, from a random phase, and takes
    them in a random order. Phase and order depend on the seed and the epoch only, so sample `n`
    does not depend on how batches are sized or divided, and the position of a run is one number.
    """

    def __init__(
        self, tokens: Tokens, seq: int, seed: int, source: str = "", span: Span = NOWHERE
    ) -> None:
        if len(tokens) < seq + 1:
            part = errors.TooFewTokens(span, source, "training", len(tokens), seq, seq + 1)
            raise DiagnosticError(part)
        self.tokens, self.seq, self.seed = tokens, seq, seed
        # As many windows as fit behind every phase; one, where the text is that short.
        self.per_epoch = max(1, (len(tokens) - seq) // seq)
        self._phases = min(seq, len(tokens) - self.per_epoch * seq)
        self._order = lru_cache(maxsize=2)(self._starts_of)  # a batch may straddle two epochs

    def _starts_of(self, epoch: int) -> Rows:
        key = philox.stream_key("windows", self.seed)
        phase = int(philox.words(key, np.zeros(1, np.int64), 2 * epoch)[0][0]) % self._phases
        order = philox.permutation(key, self.per_epoch, 2 * epoch + 1)
        return order * self.seq + phase

    def starts(self, samples: Rows) -> Rows:
        """The position of the first token of each sample."""
        epochs, within = np.divmod(samples, self.per_epoch)
        out = np.empty_like(samples)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            out[chosen] = self._order(int(epoch))[within[chosen]]
        return out

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count` of the run."""
        starts = self.starts(np.arange(first, first + count, dtype=np.int64))
        window = self.tokens[starts[:, None] + np.arange(self.seq + 1)].astype(np.int64)
        weights = np.ones((count, self.seq), np.float32)
        return Batch(window[:, :-1], window[:, 1:], weights)


class HeldOut:
    """Validation samples: every held-out token is a target exactly once, in order.

    `before` is the token in front of the held-out part (the last one trained on): it is what
    the first held-out token is predicted from. The last window is filled up with weight 0.
    """

    def __init__(
        self, tokens: Tokens, before: int, seq: int, source: str = "", span: Span = NOWHERE
    ) -> None:
        if len(tokens) == 0:
            raise DiagnosticError(errors.TooFewTokens(span, source, "held-out", 0, seq, 1))
        self.seq, self.count = seq, len(tokens)
        self.samples = -(-len(tokens) // seq)
        self._stream = np.zeros(self.samples * seq + 1, dtype=tokens.dtype)
        self._stream[0] = before
        self._stream[1 : self.count + 1] = tokens

    def batch(self, first: int, count: int) -> Batch:
        """Samples `first .. first + count`; those past the end have weight 0."""
        places = np.arange(first * self.seq, (first + count) * self.seq).reshape(count, self.seq)
        weights = (places < self.count).astype(np.float32)
        places = np.minimum(places, len(self._stream) - 2)
        tokens, targets = self._stream[places], self._stream[places + 1]
        return Batch(tokens.astype(np.int64), targets.astype(np.int64), weights)

    def batches(self, size: int) -> Iterator[Batch]:
        """All samples, `size` at a time; weights sum to `count`."""
        for first in range(0, self.samples, size):
            yield self.batch(first, size)
