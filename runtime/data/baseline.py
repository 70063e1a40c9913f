"""What counting letter pairs achieves: the loss that a trained model has to beat."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.float64]
WEIGHTS = tuple(round(0.5 + 0.01 * i, 2) for i in range(50))


def pair_counts(data: bytes) -> Counts:
    """How often each byte (column) follows each byte (row), as `[256, 256]`."""
    x = np.frombuffer(data, np.uint8).astype(np.int64)
    return np.bincount(x[:-1] * 256 + x[1:], minlength=65_536).reshape(256, 256).astype(np.float64)


def pair_model(data: bytes, weight: float) -> Counts:
    """P(next byte | byte), `[256, 256]`: `weight` on pairs, the rest on bytes counted plus one."""
    singles = np.bincount(np.frombuffer(data, np.uint8), minlength=256) + 1.0
    unigram = np.broadcast_to(singles / singles.sum(), (256, 256))
    pairs = pair_counts(data)
    seen = pairs.sum(axis=1, keepdims=True)
    bigram = np.where(seen > 0, pairs / np.maximum(seen, 1.0), unigram)
    return weight * bigram + (1.0 - weight) * unigram


def mean_nll(model: Counts, before: bytes, data: bytes) -> float:
    """Nats per byte of `data`, the first of which follows the last byte of `before`."""
    pairs = pair_counts(before[-1:] + data)
    return float(-(pairs * np.log(model)).sum() / pairs.sum())


def bigram_baseline(train: bytes, valid: bytes) -> float:
    """Nats per byte of `valid` under an interpolated byte-bigram model counted on `train`.

    The weight is the one that does best on the last tenth of `train`, counted on the rest.
    Needs two bytes to train on and one to validate on, else infinity.
    """
    if len(train) < 2 or not valid:
        return float("inf")
    cut = max(1, len(train) - len(train) // 10)
    counted, chosen_on = train[:cut], train[cut:]
    if not chosen_on:
        return mean_nll(pair_model(train, WEIGHTS[-1]), train, valid)
    losses = [mean_nll(pair_model(counted, w), counted, chosen_on) for w in WEIGHTS]
    best = WEIGHTS[int(np.argmin(losses))]
    return mean_nll(pair_model(train, best), train, valid)
