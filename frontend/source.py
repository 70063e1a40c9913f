"""Reads `.fllm` files."""

from __future__ import annotations

from pathlib import Path

from msgspec import Struct

from fllmc.frontend.syntax_errors import NotText, Unreadable
from fllmc.ir.diagnostics import DiagnosticError, near
from fllmc.ir.span import NOWHERE, Span

LARGEST = 4 * 2**20
"""More bytes than this are no specification."""


class Source(Struct, frozen=True):
    """The text of one file under the path that the user gave."""

    path: str
    text: str


def read_source(path: str, span: Span = NOWHERE) -> Source:
    """The text of the file at `path`, without a byte-order mark.

    Raises DiagnosticError at `span` (the import that asks for the file, or the command line)
    when the file can't be read or is not UTF-8 text.
    """
    content = _content(path, span)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DiagnosticError(NotText(span, path, error.start)) from None
    return Source(path, text.replace("\r\n", "\n"))


def _content(path: str, span: Span) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
    except FileNotFoundError:
        raise DiagnosticError(Unreadable(span, path, "no such file", _near(path))) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DiagnosticError(Unreadable(span, path, reason[:1].lower() + reason[1:])) from None
    if len(content) > LARGEST:
        reason = f"more than {LARGEST // 2**20} MiB, which is no specification"
        raise DiagnosticError(Unreadable(span, path, reason))
    return content


def _near(path: str) -> str | None:
    """A specification in the same folder with nearly this name."""
    wanted = Path(path)
    try:
        names = [entry.name for entry in wanted.parent.iterdir() if entry.suffix == ".fllm"]
    except OSError:
        return None
    found = near(wanted.name, names)
    return None if found is None else str(wanted.with_name(found))
