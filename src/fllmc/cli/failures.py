"""What went wrong, said to people: diagnostics rendered, internal faults with a reproducer."""

from __future__ import annotations

import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path

from fllmc.cli.exits import INTERNAL, exit_status
from fllmc.ir.diagnostics import DiagnosticError


@contextmanager
def sourced(texts: Mapping[str, str]) -> Generator[None]:
    """Lends texts that no file holds to the diagnostics that pass through."""
    from fllmc.frontend import SpecError

    try:
        yield
    except SpecError:
        raise
    except DiagnosticError as error:
        raise SpecError(error.diagnostics, texts) from error


def failed(error: Exception) -> int:
    """Print what an exception means; the exit status."""
    if isinstance(error, DiagnosticError):
        from fllmc.cli.output import report

        report(error.diagnostics, getattr(error, "sources", None))
        return exit_status(error.diagnostics)
    return internal(error)


def internal(error: Exception) -> int:
    """A fault of fllmc itself: one line, and a file with what is needed to find it."""
    from fllmc.cli.output import complain

    words = str(error).partition("\n")[0] or type(error).__name__
    complain(f"internal error: {words}")
    reproducer = getattr(error, "reproducer", "")
    kind = "fir" if reproducer else "txt"
    text = reproducer or "".join(traceback.format_exception(error))
    path = free_path(kind)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as reason:
        complain(f"  (no reproducer: {path}: {reason.strerror})")
        return INTERNAL
    if reproducer:
        passes = reproducer.partition("\n")[0].removeprefix("// passes: ")
        complain(f"  wrote the program before the pass: {path}")
        complain(f"  again: fllmc opt --debug --passes '{passes}' {path}")
    else:
        complain(f"  wrote what happened: {path}")
    complain("  this is a fault of fllmc, not of your input; please report it with that file")
    return INTERNAL


def free_path(kind: str) -> Path:
    """A file name in this folder that is not taken."""
    for number in range(1, 1000):
        path = Path(f"fllmc-fault-{number}.{kind}")
        if not path.exists():
            return path
    return Path(f"fllmc-fault.{kind}")
