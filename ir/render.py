"""Diagnostics as text for people and as data for tools.

`render` gives the form that rustc made familiar: a headline, each place with its line of source,
`^` under the place itself and `-` under places that explain it, then notes and ways out.
Nothing here knows any particular error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any
from unicodedata import category, east_asian_width

from msgspec import Struct

from fllmc.ir.diagnostics import Diagnostic, Fix, Label
from fllmc.ir.span import Span

LIMIT = 20
"""How many diagnostics are shown."""
WINDOW = 120
"""How much of a long source line is shown, in columns."""
TAB = 4
LONGEST = 6
"""A place of more lines than this is shown by its first and last two."""

RED, YELLOW, BLUE, GREEN, BOLD = "1;31", "1;33", "1;34", "1;32", "1"


def ordered(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """In order of place, each once."""
    once: dict[object, Diagnostic] = {}
    for found in diagnostics:
        once.setdefault((found.code, found.span, found.message()), found)
    return tuple(
        sorted(once.values(), key=lambda d: (d.span.file, d.span.start, d.span.end, d.code))
    )


def render(
    diagnostics: Iterable[Diagnostic], sources: Mapping[str, str], color: bool = False
) -> str:
    """All of `diagnostics`, at most `LIMIT`; `sources` maps files to their text.

    A file without text is named but not shown. Ends with a line end, or is empty.
    """
    found = ordered(diagnostics)
    paint = Paint(color)
    shown = [_one(d, sources, paint) for d in found[:LIMIT]]
    if len(found) > LIMIT:
        shown.append(f"... and {len(found) - LIMIT} more\n")
    return "\n".join(shown)


def to_json(diagnostic: Diagnostic, fixes: Iterable[Fix] = ()) -> dict[str, Any]:
    """`diagnostic` as plain data, all texts filled in, with the edits that would put it right.

    `start` and `end` count characters from 0; lines and columns count from 1; ends are exclusive.
    """
    return {
        "code": diagnostic.code,
        "severity": diagnostic.severity,
        "message": diagnostic.message(),
        "span": _place(diagnostic.span),
        "label": diagnostic.primary(),
        "labels": [{"span": _place(s.span), "text": s.text} for s in diagnostic.secondary()],
        "notes": list(diagnostic.notes()),
        "helps": list(diagnostic.helps()),
        "fixes": [
            {
                "title": fix.title,
                "edits": [{"span": _place(e.span), "text": e.text} for e in fix.edits],
            }
            for fix in fixes
        ],
    }


class Paint(Struct, frozen=True):
    """Wraps text in terminal colours, or leaves it as it is."""

    on: bool

    def __call__(self, style: str, text: str) -> str:
        return f"\x1b[{style}m{text}\x1b[0m" if self.on and text else text


class Mark(Struct, frozen=True):
    """A place to underline within one file."""

    span: Span
    text: str
    main: bool


def _place(span: Span) -> dict[str, Any]:
    return {
        "file": span.file,
        "start": span.start,
        "end": span.end,
        "line": span.line,
        "column": span.column,
        "end_line": span.end_line,
        "end_column": span.end_column,
    }


def _one(found: Diagnostic, sources: Mapping[str, str], paint: Paint) -> str:
    style = RED if found.severity == "error" else YELLOW
    head = f"{found.severity}[{found.code}]" if found.code else found.severity
    lines = [paint(style, head) + paint(BOLD, f": {_clean(found.message())}")]
    marks = [Mark(found.span, found.primary(), True)]
    marks += [_secondary(label) for label in found.secondary()]
    width = max(len(str(mark.span.end_line)) for mark in marks)
    for number, (file, group) in enumerate(_by_file(marks)):
        lines += _file(file, group, sources.get(file), width, number == 0, style, paint)
    gutter = " " * width
    for kind, texts in (("note", found.notes()), ("help", found.helps())):
        for text in texts:
            body = _clean(text).replace("\n", f"\n{gutter}         ")
            label = paint(BLUE if kind == "note" else GREEN, kind)
            lines.append(f"{gutter} {paint(BLUE, '=')} {label}: {body}")
    return "\n".join(lines) + "\n"


def _secondary(label: Label) -> Mark:
    return Mark(label.span, label.text, False)


def _by_file(marks: list[Mark]) -> list[tuple[str, list[Mark]]]:
    """The marks file by file, the file of the main mark first."""
    first = marks[0].span.file
    by_file = sorted(marks, key=lambda m: (m.span.file != first, m.span.file, m.span.start))
    return [(file, list(group)) for file, group in groupby(by_file, lambda m: m.span.file)]


def _file(
    file: str,
    marks: list[Mark],
    text: str | None,
    width: int,
    main: bool,
    style: str,
    paint: Paint,
) -> list[str]:
    """The places in one file: where, then the lines with what is underlined in them."""
    if not file:
        return [f"{' ' * width} {paint(BLUE, '=')} {_clean(m.text)}" for m in marks if m.text]
    spot = next((m for m in marks if m.main), marks[0]).span
    where = str(spot) if spot.line else file
    lines = [f"{' ' * width}{paint(BLUE, '-->' if main else ':::')} {_clean(where)}"]
    source = None if text is None else text.split("\n")
    if source is None or any(not 1 <= m.span.line <= len(source) for m in marks):
        return lines + [f"{' ' * width} {paint(BLUE, '=')} {m.text}" for m in marks if m.text]
    bar = f"{' ' * width} {paint(BLUE, '|')}"
    lines.append(bar)
    last = 0
    for number in _numbers(marks, len(source)):
        if last and number > last + 1:
            lines.append(paint(BLUE, "..."))
        last = number
        lines += _line(number, source[number - 1], marks, width, bar, style, paint)
    return lines


def _numbers(marks: list[Mark], count: int) -> list[int]:
    """The lines to show."""
    numbers: set[int] = set()
    for mark in marks:
        first, last = mark.span.line, min(_last_line(mark.span), count)
        if last - first < LONGEST:
            numbers |= set(range(first, last + 1))
        else:
            numbers |= {first, first + 1, last - 1, last}
    return sorted(numbers)


def _last_line(span: Span) -> int:
    """The last line of which `span` has a character."""
    before = span.end_line > span.line and span.end_column == 1
    return span.end_line - 1 if before else span.end_line


def _line(
    number: int,
    source: str,
    marks: list[Mark],
    width: int,
    bar: str,
    style: str,
    paint: Paint,
) -> list[str]:
    """One line of source, and beneath it a line for each mark in it."""
    here = [m for m in marks if m.span.line <= number <= _last_line(m.span)]
    cut = max(0, min(m.span.column for m in here) - WINDOW) if len(source) > 4 * WINDOW else 0
    cells = _cells(source[cut : cut + 4 * WINDOW])
    spans = [(m, *_columns(m.span, number, cut, cells)) for m in here]
    start, shown = _window(cells, min((left for _, left, _ in spans), default=0))
    lines = [f"{paint(BLUE, f'{number:>{width}} |')} {shown}".rstrip()]
    for mark, left, right in sorted(spans, key=lambda s: (-s[1], not s[0].main)):
        left, right = max(left - start, 0), min(right - start, WINDOW)
        under = ("^" if mark.main else "-") * max(right - left, 1)
        text = f" {_clean(mark.text)}" if mark.text and number == _last_line(mark.span) else ""
        painted = paint(style if mark.main else BLUE, under + text)
        lines.append(f"{bar} {' ' * left}{painted}")
    return lines


def _cells(source: str) -> list[str]:
    """What each character prints as; a terminal shows it `_size` columns wide."""
    cells: list[str] = []
    for character in source.rstrip("\r"):
        if character == "\t":
            cells.append(" " * TAB)
        else:
            cells.append(_printable(character))
    return cells


def _size(cell: str) -> int:
    """How many columns of a terminal `cell` takes."""
    if cell and category(cell[0]) in ("Mn", "Me"):
        return 0
    return sum(2 if east_asian_width(c) in "WF" else 1 for c in cell)


def _columns(span: Span, number: int, cut: int, cells: list[str]) -> tuple[int, int]:
    """The columns, from 0, of the part of `span` in line `number`; blank ends left out.

    `cells` are those of the line without its first `cut` characters.
    """
    first = max(0, span.column - 1 - cut) if number == span.line else 0
    last = max(0, span.end_column - 1 - cut) if number == span.end_line else len(cells)
    while number != span.line and first < min(last, len(cells)) and cells[first].isspace():
        first += 1
    return _sum(cells[:first]) + max(0, first - len(cells)), _sum(cells[:last])


def _sum(cells: list[str]) -> int:
    return sum(map(_size, cells))


def _window(cells: list[str], left: int) -> tuple[int, str]:
    """The part of a long line around column `left`, and the column it begins at."""
    total = _sum(cells)
    if total <= WINDOW:
        return 0, "".join(cells)
    start = max(0, min(left - WINDOW // 3, total - WINDOW))
    shown: list[str] = []
    column = 0
    for cell in cells:
        if start <= column < start + WINDOW:
            shown.append(cell)
        column += _size(cell)
    return start, "".join(shown)


def _clean(text: str) -> str:
    """`text` without control characters, which could act on the terminal."""
    return "".join(c if c == "\n" else _printable(c) for c in text)


def _printable(character: str) -> str:
    unsafe = category(character) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return "\ufffd" if unsafe else character
