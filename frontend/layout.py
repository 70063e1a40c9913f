"""A small document algebra: what may break where, and the best way to break it.

After Wadler and Lindig: a `Group` is laid flat if it fits and broken at all its own `Line`s if
not. A comment at the end of a line (`Suffix`) waits for that line to end; a comment with a line of
its own (`Own`) makes one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from msgspec import Struct

WIDTH = 100
COMMENT_COLUMN = 31
"""Where comments behind code begin at the earliest, counted from 0."""
ALIGN_WITHIN = 60
"""Code longer than this does not push the comments of its neighbours."""


class Text(Struct, frozen=True):
    """A word or sign, printed as it is."""

    text: str


class Line(Struct, frozen=True):
    """A place to break; `flat` when it isn't broken. Always broken when `hard`."""

    flat: str = " "
    hard: bool = False


class Suffix(Struct, frozen=True):
    """A comment that ends the line it is in."""

    text: str


class Own(Struct, frozen=True):
    """A comment in a line of its own."""

    text: str


class Cat(Struct, frozen=True):
    """One after the other."""

    parts: tuple[Doc, ...]


class Nest(Struct, frozen=True):
    """Breaks inside indent two more."""

    body: Doc


class Group(Struct, frozen=True):
    """Laid flat or broken as a whole; `broken` when a comment needs one of its breaks."""

    body: Doc
    broken: bool


Doc = Text | Line | Suffix | Own | Cat | Nest | Group


def cat(parts: Iterable[Doc]) -> Cat:
    """One after the other."""
    return Cat(tuple(parts))


def group(body: Doc) -> Group:
    """Flat if it fits, and if no comment needs one of its breaks."""
    waiting = after_line = broken = False
    for atom in _atoms(body):
        match atom:
            case Group():
                broken = broken or atom.broken
                continue  # what stands first in it stands behind the same line
            case Line():
                broken = broken or waiting
                waiting = False
            case Suffix():
                waiting = True
            case Own():
                broken = broken or after_line
                waiting = False
            case Text():
                pass
        after_line = isinstance(atom, Line)
    return Group(body, broken)


def render(doc: Doc) -> str:
    """The text of `doc`, with a line end after each line."""
    return _Writer().write(doc)


def _atoms(doc: Doc) -> Iterator[Text | Line | Suffix | Own | Group]:
    """What `doc` holds, in order; of groups inside, first the group and then all but its breaks."""
    waiting: list[tuple[Doc, bool]] = [(doc, True)]
    while waiting:
        match waiting.pop():
            case (Line() as line, own):
                if own:
                    yield line
            case (Text() | Suffix() | Own() as atom, _):
                yield atom
            case (Cat(parts=parts), own):
                waiting.extend((part, own) for part in reversed(parts))
            case (Nest(body=body), own):
                waiting.append((body, own))
            case (Group(body=body) as inner, _):
                yield inner
                waiting.append((body, False))


Task = tuple[int, bool, Doc]
"""An indentation, whether lines are flat, and what to write."""


class _Writer:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []
        """Code and the comment behind it."""
        self.line = ""
        self.suffixes: list[str] = []

    def write(self, doc: Doc) -> str:
        tasks: list[Task] = [(0, False, doc)]
        while tasks:
            self._step(tasks)
        self._newline(0)
        return "".join(line + "\n" for line in aligned(self.lines))

    def _step(self, tasks: list[Task]) -> None:
        indent, flat, doc = tasks.pop()
        match doc:
            case Text(text=text):
                self.line += text
            case Line(flat=text, hard=hard):
                if flat and not hard:
                    self.line += text
                else:
                    self._newline(indent)
            case Suffix(text=text):
                self.suffixes.append(text)
            case Own(text=text):
                self._own(indent, text)
            case Cat(parts=parts):
                tasks.extend((indent, flat, part) for part in reversed(parts))
            case Nest(body=body):
                tasks.append((indent + 2, flat, body))
            case Group(body=body, broken=broken):
                fits = not broken and (flat or self._fits(tasks, indent, body))
                tasks.append((indent, fits, body))

    def _newline(self, indent: int) -> None:
        self.lines.append((self.line.rstrip(), "  ".join(self.suffixes)))
        self.line = " " * indent
        self.suffixes = []

    def _own(self, indent: int, text: str) -> None:
        if self.line.strip():
            self._newline(indent)
        self.line = " " * indent + text
        self._newline(indent)

    def _fits(self, rest: list[Task], indent: int, body: Doc) -> bool:
        """Whether `body` laid flat, and what follows up to the next break, fit the line."""
        left = WIDTH - len(self.line)
        tasks: list[Task] = [(indent, True, body)]
        above = len(rest)
        while left >= 0:
            if not tasks:
                if above == 0:
                    return True
                above -= 1
                tasks.append(rest[above])
            _, flat, doc = tasks.pop()
            match doc:
                case Text(text=text):
                    left -= len(text)
                case Line(flat=text, hard=hard):
                    if hard or not flat:
                        return True
                    left -= len(text)
                case Suffix() | Own():
                    pass
                case Cat(parts=parts):
                    tasks.extend((0, flat, part) for part in reversed(parts))
                case Nest(body=inner) | Group(body=inner):
                    tasks.append((0, flat, inner))
        return False


def aligned(lines: list[tuple[str, str]]) -> list[str]:
    """Code with the comments behind it; those of lines in a row stand in one column."""
    result: list[str] = []
    for start, (code, comment) in enumerate(lines):
        if not comment:
            result.append(code)
            continue
        first = last = start
        while first > 0 and lines[first - 1][1]:
            first -= 1
        while last + 1 < len(lines) and lines[last + 1][1]:
            last += 1
        run = [len(text) + 2 for text, _ in lines[first : last + 1] if len(text) <= ALIGN_WITHIN]
        column = max(COMMENT_COLUMN, len(code) + 2 if len(code) > ALIGN_WITHIN else max(run))
        result.append(f"{code:<{column}}{comment}")
    return result
