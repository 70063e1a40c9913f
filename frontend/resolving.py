"""From a path to the text in which every default of its run is written out."""

from __future__ import annotations

from fllmc.frontend.checking import check_library
from fllmc.frontend.library import read_all, spec_path
from fllmc.frontend.loading import SpecError
from fllmc.frontend.lowering.runs import needed
from fllmc.frontend.resolved import resolved
from fllmc.ir.diagnostics import DiagnosticError


def resolve(path: str, train: str = "", text: str | None = None) -> str:
    """The spec at a path, or in `text` as if it stood there; SpecError with all that is wrong.

    `train` names the run, where the file has several.
    """
    file = path if text is not None else spec_path(path)
    library = read_all(file, text)
    if file not in library.modules:
        raise SpecError(library.found, library.sources)
    checked = check_library(needed(library))
    if not checked.ok:
        raise SpecError(checked.found, library.sources)
    try:
        return resolved(checked, {"train": train} if train else {})
    except DiagnosticError as error:
        raise SpecError(error.diagnostics, library.sources) from error
