"""Places for what passes find wrong with a field of the schedule: they know it by value alone."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from msgspec import structs

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Schedule
from fllmc.ir.span import NOWHERE
from fllmc.passes.base import Context


@contextmanager
def at_settings(schedule: Schedule, cx: Context) -> Generator[Context, None, None]:
    """The context, in which what is raised or reported about a field stands where that does."""

    def located(found: Diagnostic) -> Diagnostic:
        known = found.span != NOWHERE or not found.setting()
        return found if known else structs.replace(found, span=schedule.place_of(found.setting()))

    def report(found: Diagnostic) -> None:
        cx.report(located(found))

    try:
        yield structs.replace(cx, report=report)
    except DiagnosticError as error:
        raise DiagnosticError(*(located(found) for found in error.diagnostics)) from None
