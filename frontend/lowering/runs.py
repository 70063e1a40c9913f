"""From a checked file to the spec of a run; of one in stages, of all its parts."""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.frontend.checking import Checked
from fllmc.frontend.library import Library, extended
from fllmc.frontend.lowering.spec import LOSSES, OPTIMIZERS, RATES, SCHEDULES, Lowering
from fllmc.frontend.sections.overrides import read_overrides
from fllmc.frontend.sections.stages import in_order
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Spec


def lower(
    checked: Checked, train: str | None = None, overrides: Mapping[str, str] | None = None
) -> tuple[Spec | None, tuple[Diagnostic, ...]]:
    """The spec of the run called `train` (or the only one) with fields overridden.

    None with at least one error, never raising on bad input; the warnings of the check are not
    repeated. `checked` must be without errors.
    """
    given = dict(overrides or {})
    if train is not None:
        given.setdefault("train", train)
    overridden = read_overrides(given, checked.module.dims)
    lowering = Lowering(checked, overridden)
    specs: list[Spec] = []
    found: list[Diagnostic] = []
    try:
        parts, found = lowering.parts()
        for part in parts or (None,):
            lowering = Lowering(checked, overridden, part)
            specs.append(lowering.run())
            found += [each for each in lowering.found if each not in found]
    except DiagnosticError as error:
        return None, tuple(dict.fromkeys((*found, *lowering.found, *error.diagnostics)))
    broken = any(each.severity == "error" for each in found)
    spec = in_order(specs, parts) if parts and not broken else specs[0]
    return (None if broken else spec), tuple(found)


def needed(library: Library) -> Library:
    """The library with the shipped files that a run needs beside what is imported."""
    for file in (OPTIMIZERS, RATES, SCHEDULES, LOSSES):
        library = extended(library, file)
    return library
