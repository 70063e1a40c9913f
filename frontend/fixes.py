"""Edits that put mistakes right: those that a diagnostic knows, and those that need the text.

A fix is a guess. `fixed` keeps one only if the spec, checked again, has fewer errors with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from msgspec import Struct

from fllmc.frontend import ast
from fllmc.frontend.errors import UnknownDim, Unused
from fllmc.frontend.lexer import Lexer
from fllmc.frontend.loading import load
from fllmc.frontend.parser import parse
from fllmc.frontend.syntax_errors import Unclosed
from fllmc.ir.diagnostics import Diagnostic, Edit, Fix
from fllmc.ir.render import ordered
from fllmc.ir.span import Span

MOST = 100
"""How many fixes are applied to a file at most, and of how many diagnostics they are tried."""


class Applied(Struct, frozen=True):
    """A fix that held, and what it put right."""

    found: Diagnostic
    fix: Fix


class Fixed(Struct, frozen=True):
    """A spec's text with fixes applied, and what is still found in it."""

    text: str
    applied: tuple[Applied, ...]
    left: tuple[Diagnostic, ...]
    sources: Mapping[str, str]


def fixes_of(found: Diagnostic, text: str) -> tuple[Fix, ...]:
    """The fixes of a diagnostic that can be applied to the text of its file."""
    every = (*found.fixes(), *_in_context(found, text))
    return tuple(fix for fix in every if all(_applies(edit, text) for edit in fix.edits))


def edited(text: str, edits: Iterable[Edit]) -> str:
    """The text with edits applied, which must not overlap."""
    for edit in sorted(edits, key=lambda e: e.span.start, reverse=True):
        text = text[: edit.span.start] + edit.text + text[edit.span.end :]
    return text


def fixed(path: str, text: str, overrides: Mapping[str, str] | None = None) -> Fixed:
    """The text of a spec with all fixes that hold: after each, fewer errors are left."""
    applied: list[Applied] = []
    _, found, sources = load(path, overrides, text, needs_run=False)
    while len(applied) < MOST:
        better = _first_that_holds(path, text, found, overrides)
        if better is None:
            break
        step, text, found, sources = better
        applied.append(step)
    return Fixed(text, tuple(applied), ordered(found), sources)


def _first_that_holds(
    path: str, text: str, found: Sequence[Diagnostic], overrides: Mapping[str, str] | None
) -> tuple[Applied, str, tuple[Diagnostic, ...], Mapping[str, str]] | None:
    for each in ordered(found)[:MOST]:
        if each.span.file != path:
            continue
        for fix in fixes_of(each, text):
            changed = edited(text, fix.edits)
            _, left, sources = load(path, overrides, changed, needs_run=False)
            if _weight(left) < _weight(found):
                return Applied(each, fix), changed, left, sources
    return None


def _weight(found: Sequence[Diagnostic]) -> tuple[int, int, int]:
    """How much is wrong: what keeps a file from being read, other errors, warnings.

    While a text can't be read, nothing else is known of it.
    """
    errors = [each for each in ordered(found) if each.severity == "error"]
    unread = sum(each.code < "E0203" for each in errors)
    return unread, len(errors) - unread, len(found) - len(errors)


def _applies(edit: Edit, text: str) -> bool:
    return edit.was is None or text[edit.span.start : edit.span.end] == edit.was


def _in_context(found: Diagnostic, text: str) -> Iterator[Fix]:
    match found:
        case Unclosed(closer=closer, latest=latest):
            yield _closed(closer, latest.start, Lexer(text, latest.file))
        case UnknownDim(name=name):
            yield from _declared(name, Lexer(text, found.span.file))
        case Unused(name=name, what="import"):
            yield from _dropped(found.span, Lexer(text, found.span.file))
        case _:
            return


def _closed(closer: str, latest: int, source: Lexer) -> Fix:
    """The bracket closed: a brace on a line of its own, another one where the code before ends."""
    end = len(source.text[:latest].rstrip())
    place = source.span(end, end)
    return Fix(f"add `{closer}`", (Edit(place, f"\n{closer}\n" if closer == "}" else closer),))


def _declared(name: str, source: Lexer) -> Iterator[Fix]:
    """A dim without size in the file's last `dims` section."""
    tree, _ = parse(source.text, source.file)
    sections = [each for each in tree.sections if isinstance(each, ast.Dims)]
    if sections and sections[-1].items:
        end = sections[-1].items[-1].span.end
        yield Fix(f"declare `{name}`", (Edit(source.span(end, end), f"\n  {name}"),))


def _dropped(name: Span, source: Lexer) -> Iterator[Fix]:
    """An imported name left out, with its comma; the import, if it has no other."""
    text = source.text
    tree, _ = parse(text, name.file)
    for each in tree.sections:
        if not (isinstance(each, ast.Import) and each.span.start < name.start < each.span.end):
            continue
        names = [known.span for known in each.names]
        place = next(i for i, span in enumerate(names) if span.start == name.start)
        if len(names) == 1:
            start, end = each.span.start, _line_end(text, each.span.end)
        elif place:
            start, end = names[place - 1].end, name.end
        else:
            start, end = name.start, names[1].start
        cut = text[start:end]
        if "#" not in cut.removesuffix("\n"):
            yield Fix("leave it out", (Edit(source.span(start, end), ""),))


def _line_end(text: str, end: int) -> int:
    """Behind the line end at `end`, if nothing else is on the line."""
    rest = text[end:].partition("\n")
    return end if rest[0].strip() else min(len(text), end + len(rest[0]) + 1)
