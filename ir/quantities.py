"""Numbers as people read them."""

from __future__ import annotations

BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def bytes_text(count: float) -> str:
    """`1.50 GiB`; three digits, exact below 1 KiB."""
    unit = 0
    while abs(count) >= 999.5 and unit < len(BINARY) - 1:
        count /= 1024
        unit += 1
    return f"{count:.0f} B" if unit == 0 else f"{three_digits(count)} {BINARY[unit]}"


def count_text(count: float, units: tuple[str, ...] = ("", " K", " M", " B", " T")) -> str:
    """`8.03 B`: thousands, millions, billions; three digits, exact below a thousand."""
    unit = 0
    while abs(count) >= 999.5 and unit < len(units) - 1:
        count /= 1000
        unit += 1
    return (f"{count:.0f}" if unit == 0 else three_digits(count)) + units[unit]


def flops_text(count: float) -> str:
    """`1.23 TFLOP`."""
    units = (" FLOP", " KFLOP", " MFLOP", " GFLOP", " TFLOP", " PFLOP", " EFLOP")
    return count_text(count, units)


def seconds_text(seconds: float) -> str:
    """`340 us`, `12 ms`, `1.20 s`."""
    if seconds < 0.9995e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"


def three_digits(number: float) -> str:
    """`1.23`, `12.3`, `123`."""
    places = 2 if abs(number) < 9.995 else 1 if abs(number) < 99.95 else 0
    return f"{number:.{places}f}"
