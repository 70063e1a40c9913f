"""The bytes of a data source: text files, or text that comes with Python."""

from __future__ import annotations

import hashlib
import sysconfig
from collections.abc import Callable
from glob import glob
from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors

PREFIX = "builtin:"
SEPARATOR = b"\n\n"


class Corpus(msgspec.Struct, frozen=True):
    """A source's bytes, joined in a fixed order, and what they were made of."""

    source: str
    data: bytes
    files: int

    @property
    def sha256(self) -> str:
        """The hash of all bytes: Python's own text differs between its releases."""
        return hashlib.sha256(self.data).hexdigest()

    def split(self, holdout: float, span: Span = NOWHERE) -> tuple[bytes, bytes]:
        """The bytes to train on and, behind them, those to validate on.

        The cut is at `holdout` of the bytes from the end, moved on by up to three bytes so as not
        to cut a UTF-8 character.
        """
        if not 0.0 <= holdout < 1.0:
            raise DiagnosticError(errors.BadHoldout(span, holdout))
        cut = len(self.data) - int(len(self.data) * holdout)
        for _ in range(3):
            if cut < len(self.data) and self.data[cut] & 0xC0 == 0x80:
                cut += 1
        return self.data[:cut], self.data[cut:]


def read_source(source: str, folder: Path, span: Span = NOWHERE) -> Corpus:
    """The corpus named `source`: `builtin:NAME`, or a path or glob relative to `folder`."""
    parts = parts_of(source, folder, span)
    return Corpus(source, SEPARATOR.join(parts), len(parts))


def parts_of(source: str, folder: Path, span: Span = NOWHERE) -> list[bytes]:
    """The bytes of each file of a source, in order; at least one is not empty."""
    if source.startswith(PREFIX):
        name = source.removeprefix(PREFIX)
        if name not in BUILTINS:
            raise DiagnosticError(errors.UnknownBuiltin(span, name, tuple(sorted(BUILTINS))))
        parts = BUILTINS[name](span)
    else:
        parts = [_read(path, span) for path in source_files(source, folder, span)]
    if not any(parts):
        raise DiagnosticError(errors.SourceEmpty(span, source, len(parts)))
    return parts


def source_files(source: str, folder: Path, span: Span = NOWHERE) -> list[Path]:
    """The files that a path or a glob names, in order; at least one."""
    exact = folder / source
    if exact.is_file():
        return [exact]
    found = [folder / name for name in glob(source, root_dir=folder, recursive=True)]
    files = sorted((path for path in found if path.is_file()), key=Path.as_posix)
    if not files:
        raise DiagnosticError(errors.SourceMissing(span, source, str(folder)))
    return files


def _read(path: Path, span: Span) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiagnosticError(errors.SourceUnreadable(span, str(path), reason)) from error


def _pydocs(span: Span) -> list[bytes]:
    """The English language reference that Python's `help()` shows, topic by topic."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise DiagnosticError(errors.BuiltinAbsent(span, "pydocs", str(error))) from error
    return [topics[name].encode() for name in sorted(topics)]


def _stdlib(span: Span) -> list[bytes]:
    """The standard library's own modules, without tests and installed packages."""
    root = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idle_test", "lib2to3"}
    found = [path.relative_to(root) for path in root.rglob("*.py")]
    chosen = [path for path in found if not left_out & set(path.parts)]
    if not chosen:
        reason = f"no source files in `{root}`"
        raise DiagnosticError(errors.BuiltinAbsent(span, "stdlib", reason))
    return [_read(root / path, span) for path in sorted(chosen, key=Path.as_posix)]


BUILTINS: dict[str, Callable[[Span], list[bytes]]] = {"pydocs": _pydocs, "stdlib": _stdlib}
