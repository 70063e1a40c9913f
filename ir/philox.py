"""Philox4x32-10: random bits as a pure function of a key and a counter.

The generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011). There is no state: the bits at one place can be asked for alone, in any order, on any
process, and are always the same. Tests hold it to the known-answer vectors published with it.

The arithmetic is written once, with operators only, for any array library whose int64 product
wraps modulo 2**64 and whose float64 `+ - * /` round as IEEE 754 says. So numpy and torch, on any
device, agree bit for bit, in the normal deviates too: the logarithm and the sine are polynomials
here rather than calls into a mathematics library, and the square root is corrected.

Shapes: a counter block `n` yields four 32-bit words. Stream element `e` of `uniform32` and
`normal` is lane `e % 4` of block `e // 4`; of `uniform64` it is lane `e % 2` of block `e // 2`.
"""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

# An int64 or float64 array of numpy or of torch: they share operators, not a class.
Lanes: TypeAlias = Any
Words: TypeAlias = tuple[Lanes, Lanes, Lanes, Lanes]


class Library(Protocol):
    """What is asked of an array library beyond operators."""

    def double(self, x: Lanes) -> Lanes:
        """`x` as float64, exactly."""
        ...

    def sqrt(self, x: Lanes) -> Lanes:
        """The square root, to a unit in the last place."""
        ...

    def frexp(self, x: Lanes) -> tuple[Lanes, Lanes]:
        """Mantissa in [1/2, 1) and exponent, exactly."""
        ...


class NumpyLibrary:
    """The library as numpy has it."""

    def double(self, x: Lanes) -> Lanes:
        """`x` as float64."""
        return np.asarray(x, dtype=np.float64)

    def sqrt(self, x: Lanes) -> Lanes:
        """The square root."""
        return np.sqrt(x)

    def frexp(self, x: Lanes) -> tuple[Lanes, Lanes]:
        """Mantissa and exponent."""
        mantissa, exponent = np.frexp(x)
        return mantissa, exponent


NUMPY = NumpyLibrary()
ROUNDS = 10
MASK = 0xFFFF_FFFF
_MULTIPLIERS = (0xD251_1F53, 0xCD9E_8D57)
_WEYL = (0x9E37_79B9, 0xBB67_AE85)


def stream_key(*parts: str | int) -> int:
    """The 64-bit key named by `parts`: the first eight bytes of a SHA-256, little end first.

    Parts are tagged with their type and length, so no two different lists read the same.
    """
    digest = hashlib.sha256()
    for part in parts:
        text = f"{type(part).__name__}:{part}".encode()
        digest.update(len(text).to_bytes(8, "little") + text)
    return int.from_bytes(digest.digest()[:8], "little")


def philox4x32(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds over four counter words, each an int64 array of values below 2**32."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(ROUNDS):
        # The product may pass 2**63 and wrap; its low 64 bits are right, and the mask drops
        # the sign that the arithmetic shift drags in.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK
        c2, c3 = ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + _WEYL[0]) & MASK, (k1 + _WEYL[1]) & MASK
    return c0, c1, c2, c3


def words(key: int, blocks: Lanes, stream: int = 0) -> Words:
    """The four words of each counter block: `blocks` (int64) is the low half, `stream` the high."""
    zero = blocks * 0
    counter = (blocks & MASK, (blocks >> 32) & MASK, zero + (stream & MASK), zero + (stream >> 32))
    return philox4x32(counter, (key & MASK, (key >> 32) & MASK))


def unit24(word: Lanes, library: Library) -> Lanes:
    """A word as a multiple of 2**-24 in [0, 1): exact in float32."""
    return library.double(word >> 8) * 2.0**-24


def unit53(high: Lanes, low: Lanes, library: Library) -> Lanes:
    """Two words as a multiple of 2**-53 in [0, 1): exact in float64."""
    return library.double(((high >> 5) << 26) + (low >> 6)) * 2.0**-53


class Draw(NamedTuple):
    """Which numbers a `random` op draws: the run's seed, the op's place, the global sample of each
    element (an int64 array) and the layer (below 2**16; an int, or an int64 scalar array).

    `seed` is an int below 2**53, or an int64 scalar array.
    """

    seed: Lanes
    place: int
    samples: Lanes
    layer: Lanes


def uniform_at(draw: Draw, elements: Lanes, library: Library) -> Lanes:
    """Uniform multiples of 2**-24 in [0, 1), one for each of samples and elements, broadcast.

    An element is the global row-major number (int64, not negative) within one sample. Its value is
    the first word of the block with counter

        (element low, element high, sample low, sample's next 16 bits | layer << 16)

    under the key (seed low, seed high + place * 0x9E3779B9), all words of 32 bits.
    """
    zero = draw.samples * 0 + elements * 0
    top = ((draw.samples >> 32) & 0xFFFF) | ((draw.layer & 0xFFFF) << 16)
    counter = (
        zero + (elements & MASK),
        zero + ((elements >> 32) & MASK),
        zero + (draw.samples & MASK),
        zero + top,
    )
    high = ((draw.seed >> 32) + (draw.place * _WEYL[0] & MASK)) & MASK
    return unit24(philox4x32(counter, (draw.seed & MASK, high))[0], library)


def _polynomial(x: Lanes, coefficients: tuple[float, ...]) -> Lanes:
    total: Lanes = x * coefficients[-1]
    for coefficient in reversed(coefficients[1:-1]):
        total = (total + coefficient) * x
    return total + coefficients[0]


# log(m) = 2 atanh(s), s = (m-1)/(m+1): with m in [1/2, 1] scaled to [0.70, 1.42], s*s < 0.0296,
# so that the first term left out is below 1e-18.
_ATANH = tuple(2.0 / (2 * k + 1) for k in range(12))
# Taylor series of cos and sin in x*x for |x| <= pi/4; the first term left out is below 1e-16.
_COS = (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40_320, -1 / 3_628_800, 1 / 479_001_600,
        -1 / 87_178_291_200, 1 / 20_922_789_888_000)  # fmt: skip
_SIN = (1.0, -1 / 6, 1 / 120, -1 / 5_040, 1 / 362_880, -1 / 39_916_800, 1 / 6_227_020_800,
        -1 / 1_307_674_368_000)  # fmt: skip
_LN2 = 0.693_147_180_559_945_3
_SQRT_HALF = 0.707_106_781_186_547_5
_EIGHTH_TURN = 0.785_398_163_397_448_3


def minus_two_log(x: Lanes, library: Library) -> Lanes:
    """-2 log(x) for positive x; relative error below 1e-14."""
    mantissa, exponent = library.frexp(x)
    small = library.double(mantissa < _SQRT_HALF)
    m = mantissa * (small + 1.0)
    s = (m - 1.0) / (m + 1.0)
    return (s * _polynomial(s * s, _ATANH) + (library.double(exponent) - small) * _LN2) * -2.0


def cos_sin(word: Lanes, library: Library) -> tuple[Lanes, Lanes]:
    """Cosine and sine of the angle (word + 1/2) / 2**32 turns; absolute error below 5e-16."""
    octant = word >> 29
    # Odd octants are measured back from their end, so the angle stays within an eighth turn.
    within = (library.double(word & 0x1FFF_FFFF) + 0.5) * 2.0**-29
    x = (within + (octant & 1) * (1.0 - 2.0 * within)) * _EIGHTH_TURN
    near, far = _polynomial(x * x, _COS), x * _polynomial(x * x, _SIN)
    # Octants 1, 2, 5, 6 lie nearer to the vertical: there the two series change places.
    swap = ((octant + 1) >> 1) & 1
    cosine, sine = near + swap * (far - near), far + swap * (near - far)
    left, below = ((octant + 2) >> 2) & 1, octant >> 2
    return cosine * (1 - 2 * left), sine * (1 - 2 * below)


def square_root(x: Lanes, library: Library) -> Lanes:
    """The square root of positive x, rounded to nearest.

    Vectorised libraries may be a unit off, and differ with the array's layout. One Newton step
    from their answer with an exact residual (Dekker's product, 1971) gives the nearest float64,
    but where the root is within about 2**-50 units of halfway between two.
    """
    y = library.sqrt(x)
    scaled = y * 134_217_729.0
    high = scaled - (scaled - y)
    low = y - high
    square = y * y
    error = ((high * high - square) + high * low * 2.0) + low * low
    return y + ((x - square) - error) / (y * 2.0)


def normal_lanes(drawn: Words, library: Library) -> Words:
    """Four standard normal deviates from four words (Box and Muller, 1958); |value| < 6.8."""
    out: list[Lanes] = []
    for magnitude, angle in (drawn[:2], drawn[2:]):
        uniform = (library.double(magnitude) + 0.5) * 2.0**-32
        radius = square_root(minus_two_log(uniform, library), library)
        out += [radius * part for part in cos_sin(angle, library)]
    return out[0], out[1], out[2], out[3]


def bits(key: int, blocks: npt.NDArray[np.int64], stream: int = 0) -> npt.NDArray[np.uint32]:
    """The words of each counter block, as `[..., 4]`."""
    return np.stack(words(key, blocks, stream), axis=-1).astype(np.uint32)


def _window(lanes: tuple[Lanes, ...], first: int, count: int) -> npt.NDArray[np.float64]:
    flat = np.stack(lanes, axis=-1).reshape(-1)
    skip = first % len(lanes)
    return flat[skip : skip + count]


def _blocks(first: int, count: int, width: int) -> npt.NDArray[np.int64]:
    return np.arange(first // width, -(-(first + count) // width), dtype=np.int64)


def uniform32(key: int, first: int, count: int, stream: int = 0) -> npt.NDArray[np.float32]:
    """Elements `first .. first + count` of the stream, uniform in [0, 1), 24 bits each."""
    drawn = words(key, _blocks(first, count, 4), stream)
    lanes = tuple(unit24(word, NUMPY) for word in drawn)
    return _window(lanes, first, count).astype(np.float32)


def uniform64(key: int, first: int, count: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """Elements `first .. first + count` of the stream, uniform in [0, 1), 53 bits each."""
    w0, w1, w2, w3 = words(key, _blocks(first, count, 2), stream)
    return _window((unit53(w0, w1, NUMPY), unit53(w2, w3, NUMPY)), first, count)


def normal(key: int, first: int, count: int, stream: int = 0) -> npt.NDArray[np.float64]:
    """Elements `first .. first + count` of the stream, standard normal in float64."""
    drawn = words(key, _blocks(first, count, 4), stream)
    return _window(normal_lanes(drawn, NUMPY), first, count)


def permutation(key: int, size: int, stream: int = 0) -> npt.NDArray[np.int64]:
    """The order of `0 .. size` by 64 random bits each: every order is about equally likely."""
    w0, w1, w2, w3 = words(key, _blocks(0, size, 2), stream)
    ranks = np.stack([w0 << 32 | w1, w2 << 32 | w3], axis=-1).reshape(-1)[:size]
    return np.argsort(ranks, kind="stable")
