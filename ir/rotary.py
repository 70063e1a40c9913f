"""How fast the pairs of rotary positions turn, plain or stretched over longer sequences."""

from __future__ import annotations

from typing import NamedTuple


class Ramp(NamedTuple):
    """Which pairs are slowed down: none of them beyond `high`, all before `low`, between in part.

    `kind` says what of a pair is compared: its plain `speed` (Llama 3) or its number, `pair` (YaRN,
    Peng et al. 2023, where `high` is below `low`). Without a kind all are slowed down alike.
    """

    kind: str = ""
    low: float = 0.0
    high: float = 0.0

    def kept(self, speed: float, pair: int) -> float:
        """How much of its plain speed a pair keeps, from 0 to 1."""
        if not self.kind:
            return 0.0
        at = speed if self.kind == "speed" else float(pair)
        return min(1.0, max(0.0, (at - self.low) / (self.high - self.low)))


PLAIN = Ramp()


def turning_speeds(
    width: int,
    theta: float,
    factor: float = 1.0,
    ramp: Ramp = PLAIN,
    factors: tuple[float, ...] = (),
) -> tuple[float, ...]:
    """Radians per position of each of width / 2 pairs.

    Plain speeds are theta^(-2i/width) (Su et al. 2021). They are divided by `factor`, or each by
    its own of `factors` (LongRoPE, Ding et al. 2024), where the ramp does not keep them.
    """
    found: list[float] = []
    for pair in range(width // 2):
        plain = theta ** (-2.0 * pair / width)
        slow = plain / (factors[pair] if factors else factor)
        kept = ramp.kept(plain, pair)
        found.append(slow * (1.0 - kept) + plain * kept if kept else slow)
    return tuple(found)
