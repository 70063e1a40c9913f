"""Errors and warnings as values.

A kind of mistake is a subclass of `Diagnostic`: its class variables hold the words, its fields
the data the words speak of, its docstring what `fllmc explain CODE` prints. Subclasses live in the
`errors.py` of the stage that finds the mistake. Nothing here prints; see `ir/render.py`.

Codes: E01 syntax, E02 names, types, dims and meshes, E03 sharding and placement, E04 memory,
E05 pipeline schedules, E06 data, E07 checkpoints and artifacts, E08 environment; W for warnings.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal

from msgspec import Struct, structs

from fllmc.ir.span import Span

Severity = Literal["error", "warning"]


class Label(Struct, frozen=True):
    """A secondary place and the few words to print beneath it."""

    span: Span
    text: str


class Edit(Struct, frozen=True):
    """The text at `span` is to become `text`. It must be `was` now, unless that is None."""

    span: Span
    text: str
    was: str | None = None


class Fix(Struct, frozen=True):
    """Edits of one file that very likely put a mistake right, and what they do in a few words."""

    title: str
    edits: tuple[Edit, ...]


class Diagnostic(Struct, frozen=True):
    """One mistake at one place.

    `title`, `label` and the lines of `note` and `help` are templates filled by `str.format` from
    the fields (write `{{` for a brace). Override the methods where a template isn't enough.
    Texts start in lower case, have no full stop, and quote what the user wrote in backticks.
    """

    code: ClassVar[str] = ""
    severity: ClassVar[Severity] = "error"
    title: ClassVar[str] = ""
    label: ClassVar[str] = ""
    note: ClassVar[tuple[str, ...]] = ()
    help: ClassVar[tuple[str, ...]] = ()
    infeasible: ClassVar[bool] = False
    """Whether the input is right, and only mesh, memory or counts leave no plan of it."""

    span: Span

    def fill(self, template: str) -> str:
        """`template` with `{field}` replaced by this value's fields."""
        fields: dict[str, Any] = structs.asdict(self)
        return template.format_map(fields)

    def message(self) -> str:
        """The line behind the code; understood without the source."""
        return self.fill(self.title)

    def primary(self) -> str:
        """The words at the place itself; understood without the message."""
        return self.fill(self.label)

    def setting(self) -> str:
        """The field of the schedule that it speaks of, if that is what gives it a place."""
        return ""

    def secondary(self) -> tuple[Label, ...]:
        """Other places that explain the mistake."""
        return ()

    def notes(self) -> tuple[str, ...]:
        """Facts that belong to no place."""
        return tuple(self.fill(line) for line in self.note)

    def helps(self) -> tuple[str, ...]:
        """Ways out; only those that are very likely right."""
        return tuple(self.fill(line) for line in self.help)

    def fixes(self) -> tuple[Fix, ...]:
        """Ways out that can be applied, the likeliest first; see also `frontend/fixes.py`."""
        return ()


class DiagnosticError(Exception):
    """Carries diagnostics to the boundary (the command line) that renders them."""

    def __init__(self, *diagnostics: Diagnostic) -> None:
        super().__init__(*diagnostics)
        self.diagnostics: tuple[Diagnostic, ...] = diagnostics

    def __str__(self) -> str:
        return "\n".join(f"{d.span}: {d.code}: {d.message()}" for d in self.diagnostics)


class InternalError(Exception):
    """A fault of the compiler itself, never of its input."""


def near(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to `name`, or None when none is close (for "did you mean")."""
    if len(name) > 80:  # difflib is quadratic
        return None
    from difflib import get_close_matches  # slow to import, and most runs have no errors

    found = get_close_matches(name, sorted(set(candidates) - {name}), n=1, cutoff=0.6)
    return found[0] if found else None


def did_you_mean(name: str, candidates: Iterable[str]) -> tuple[str, ...]:
    """A help line that names the nearest candidate, or nothing."""
    found = near(name, candidates)
    return () if found is None else (f"did you mean `{found}`?",)


def instead(span: Span, was: str, text: str | None) -> tuple[Fix, ...]:
    """The fix that replaces a word, or nothing where there is no other word."""
    if not text:
        return ()
    return (Fix(f"write `{text}` instead of `{was}`", (Edit(span, text, was),)),)


def nearest(span: Span, name: str, candidates: Iterable[str]) -> tuple[Fix, ...]:
    """The fix that replaces a name by the nearest candidate, or nothing."""
    return instead(span, name, near(name, candidates))


def all_codes() -> dict[str, type[Diagnostic]]:
    """Every code and its class, in order, among the modules imported so far."""
    found: dict[str, type[Diagnostic]] = {}
    for kind in _subclasses(Diagnostic):
        if kind.code and found.setdefault(kind.code, kind) is not kind:
            raise InternalError(f"{kind.code}: {found[kind.code].__name__} and {kind.__name__}")
    return dict(sorted(found.items()))


def explanation(kind: type[Diagnostic]) -> str:
    """What `fllmc explain CODE` prints: the class's docstring."""
    return inspect.cleandoc(kind.__doc__ or "")


def _subclasses(kind: type[Diagnostic]) -> Iterator[type[Diagnostic]]:
    for child in kind.__subclasses__():
        yield child
        yield from _subclasses(child)
