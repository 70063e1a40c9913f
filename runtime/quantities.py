"""Bytes and rates as people read them."""

from __future__ import annotations


def shown_bytes(count: int) -> str:
    """Bytes as people read them: `61 MiB`."""
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= 10 * size or (unit == "MiB" and count >= size):
            return f"{count / size:.0f} {unit}"
    return f"{count} B"


def shown_rate(rate: float) -> str:
    """A number per second: `27.9k`."""
    for letter, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if rate >= size:
            return f"{rate / size:.1f}{letter}"
    return f"{rate:.0f}"
