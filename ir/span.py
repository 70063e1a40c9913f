"""Places in source text."""

from __future__ import annotations

from msgspec import Struct


class Span(Struct, frozen=True, gc=False, cache_hash=True):
    """A stretch of one file: characters `start` (inclusive) to `end` (exclusive).

    `line`, `column`, `end_line` and `end_column` count from 1; the end is the place just behind
    the last character. `file` is the path as the user wrote it, never made absolute, so that
    what is printed or stored does not depend on the folder a command runs in.
    """

    file: str
    start: int
    end: int
    line: int
    column: int
    end_line: int
    end_column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"

    def to(self, other: Span) -> Span:
        """The stretch from the start of this one to the end of `other` (same file)."""
        return Span(
            self.file,
            self.start,
            other.end,
            self.line,
            self.column,
            other.end_line,
            other.end_column,
        )

    def opening(self) -> Span:
        """The empty place at the start of this stretch."""
        return Span(
            self.file, self.start, self.start, self.line, self.column, self.line, self.column
        )

    def closing(self) -> Span:
        """The empty place just behind this stretch."""
        return Span(
            self.file, self.end, self.end, self.end_line, self.end_column,
            self.end_line, self.end_column,
        )  # fmt: skip


NOWHERE = Span("", 0, 0, 0, 0, 0, 0)
"""The place of what no source text stands for, such as a command-line option."""
