"""The picture of a pipeline schedule as SVG: a line for each rank, time to the right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from fllmc.ir.timetable import Timed

WIDTH, ROW, LEFT = 960, 22, 44
FILLS: Final[Mapping[str, str]] = {"F": "#4c78a8", "B": "#59a14f", "I": "#59a14f", "W": "#e39c37"}
WORDS: Final[Mapping[str, str]] = {
    "F": "forward",
    "B": "backward",
    "I": "backward to the input",
    "W": "gradients of weights",
}


def timetable_svg(timeline: Sequence[Timed], title: str, unit: str = "") -> str:
    """The picture; `unit` is of the times that are shown where one points. No scripts, no links.

    Later chunks of a rank are paler.
    """
    ranks = max((each.rank for each in timeline), default=-1) + 1
    whole = max((each.end for each in timeline), default=1.0) or 1.0
    scale = (WIDTH - LEFT) / whole
    height = ranks * ROW + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" font-family="sans-serif" font-size="10">',
        f"<title>{escaped(title)}</title>",
    ]
    for rank in range(ranks):
        y = rank * ROW + 14
        lines.append(f'<text x="{LEFT - 6}" y="{y}" text-anchor="end">rank {rank}</text>')
    lines += [box(each, scale, ranks, unit) for each in timeline]
    x = float(LEFT)
    for kind in sorted({each.action.kind for each in timeline}):
        y = ranks * ROW + 10
        lines.append(f'<rect x="{x:g}" y="{y}" width="10" height="10" fill="{FILLS[kind]}"/>')
        lines.append(f'<text x="{x + 14:g}" y="{y + 9}">{WORDS[kind]}</text>')
        x += 30 + 6 * len(WORDS[kind])
    return "\n".join([*lines, "</svg>"]) + "\n"


def box(each: Timed, scale: float, ranks: int, unit: str) -> str:
    """One action: its micro-batch where there is room, all about it where one points."""
    action = each.action
    x, width = LEFT + each.begin * scale, (each.end - each.begin) * scale
    y = each.rank * ROW + 2
    opacity = 1.0 if action.stage < ranks else 0.65
    words = f"{WORDS[action.kind]}, stage {action.stage}, micro-batch {action.micro}"
    when = f"{each.begin:.4g} to {each.end:.4g}{' ' + unit if unit else ''}"
    label = ""
    if width >= 12:
        label = (
            f'<text x="{x + width / 2:.1f}" y="{y + 12}" text-anchor="middle" fill="#fff">'
            f"{action.micro}</text>"
        )
    return (
        f'<g><title>{words}: {when}</title><rect x="{x:.2f}" y="{y}" width="{max(width, 0.3):.2f}" '
        f'height="{ROW - 4}" fill="{FILLS[action.kind]}" fill-opacity="{opacity}" stroke="#fff" '
        f'stroke-width="0.5"/>{label}</g>'
    )


def escaped(text: str) -> str:
    """Text that can stand in SVG."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
