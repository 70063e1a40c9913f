"""The chart of a rank's memory over a step, as inline SVG: areas stacked by category."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.codegen.timeline import CATEGORIES, Stretch, Timeline
from fllmc.ir.quantities import bytes_text

WIDTH, HEIGHT, LEFT, BAND = 960, 300, 74, 20
"""Of the plot in SVG units: its size, the space for the scale, the height of a band below."""


class Area(msgspec.Struct, frozen=True):
    """One category's share: its name, its place in the legend, its outline, its largest size."""

    name: str
    number: int
    path: str
    most: str


class Spot(msgspec.Struct, frozen=True):
    """The column of one op, with the words shown when it is pointed at."""

    x: float
    width: float
    words: str


class Band(msgspec.Struct, frozen=True):
    """A stretch of the step beneath the plot."""

    x: float
    width: float
    y: float
    label: str
    shown: str


class Tick(msgspec.Struct, frozen=True):
    """A line of the scale."""

    y: float
    label: str


class Chart(msgspec.Struct, frozen=True):
    """All that the page draws."""

    areas: tuple[Area, ...]
    spots: tuple[Spot, ...]
    bands: tuple[Band, ...]
    ticks: tuple[Tick, ...]
    peak_x: float
    peak_y: float
    peak_words: str
    width: int = WIDTH
    height: int = HEIGHT
    left: int = LEFT
    full: int = HEIGHT


def memory_chart(line: Timeline) -> Chart:
    """The chart of one entry."""
    step = WIDTH / len(line.moments)
    peak = line.moments.index(line.peak)
    deepest = max((each.depth for each in line.stretches), default=-1)
    spots = [
        Spot(across(line, at), round(step, 2), words(line, at)) for at in range(len(line.moments))
    ]
    return Chart(
        areas=areas(line),
        spots=tuple(spots),
        bands=tuple(band(line, stretch) for stretch in line.stretches),
        ticks=tuple(Tick(up(line, size), bytes_text(size)) for size in scale(line.peak.total)),
        peak_x=round(across(line, peak) + step / 2, 2),
        peak_y=up(line, line.peak.total),
        peak_words=f"peak {bytes_text(line.peak.total)}",
        full=HEIGHT + 8 + BAND * (deepest + 1),
    )


def across(line: Timeline, at: int) -> float:
    """Where a moment's column begins."""
    return round(LEFT + at * WIDTH / len(line.moments), 2)


def up(line: Timeline, size: float) -> float:
    """The height of so many bytes; the peak ends below the upper edge."""
    return round(HEIGHT - size / max(line.peak.total, 1) * (HEIGHT - 18), 2)


def areas(line: Timeline) -> tuple[Area, ...]:
    """The outlines, lowest first; categories that are never there are left out."""
    found: list[Area] = []
    base = [0] * len(line.moments)
    for number, name in enumerate(CATEGORIES):
        sizes = [moment.bytes[number] for moment in line.moments]
        if any(sizes):
            top = [low + size for low, size in zip(base, sizes, strict=True)]
            found.append(Area(name, number, outline(line, base, top), bytes_text(max(sizes))))
            base = top
    return tuple(found)


def outline(line: Timeline, low: Sequence[int], high: Sequence[int]) -> str:
    """A path around what lies between two step lines."""
    there = corners(line, high)
    back = corners(line, low)[::-1]
    return "M" + "L".join(f"{x:g} {y:g}" for x, y in (*there, *back)) + "Z"


def corners(line: Timeline, sizes: Sequence[int]) -> list[tuple[float, float]]:
    """The corners of a step line, only where it turns."""
    found: list[tuple[float, float]] = []
    for at, size in enumerate(sizes):
        if at == 0 or size != sizes[at - 1]:
            if at:
                found.append((across(line, at), up(line, sizes[at - 1])))
            found.append((across(line, at), up(line, size)))
    return [*found, (across(line, len(sizes)), up(line, sizes[-1]))]


def words(line: Timeline, at: int) -> str:
    """What is said of one moment."""
    moment = line.moments[at]
    held = [
        f"{name}: {bytes_text(size)}"
        for name, size in zip(CATEGORIES, moment.bytes, strict=True)
        if size
    ]
    head = f"{moment.path or moment.function} · {moment.kind} · {bytes_text(moment.total)}"
    return "\n".join((head, *reversed(held)))


def band(line: Timeline, stretch: Stretch) -> Band:
    """The mark of a function's stretch."""
    start, stop = across(line, stretch.start), across(line, stretch.stop)
    times = f" × {stretch.times}" if stretch.times > 1 else ""
    label = f"{stretch.label}{times}"
    room = int((stop - start) / 6.5)
    shown = label if len(label) <= room else times.strip() if len(times.strip()) <= room else ""
    return Band(start, round(stop - start, 2), HEIGHT + 8 + BAND * stretch.depth, label, shown)


def scale(top: int) -> list[int]:
    """Three to five round numbers of bytes up to the top."""
    step = 1
    while top / step >= 6:
        step *= 2
    return [step * n for n in range(int(top // step) + 1)]
