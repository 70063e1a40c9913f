"""From a path to the `Spec` of a run: read, check, lower."""

from __future__ import annotations

from collections.abc import Mapping

from fllmc.frontend.checking import check_library
from fllmc.frontend.library import read_all, spec_path
from fllmc.frontend.lowering.runs import lower, needed
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Spec

Sources = Mapping[str, str]


class SpecError(DiagnosticError):
    """What is wrong with a spec, with the texts that the places are in."""

    def __init__(self, found: tuple[Diagnostic, ...], sources: Sources) -> None:
        super().__init__(*found)
        self.sources = sources


def load_spec(
    path: str, overrides: Mapping[str, str] | None = None
) -> tuple[Spec, tuple[Diagnostic, ...]]:
    """The spec of a run and the warnings; SpecError with all that is wrong if there is none."""
    spec, found, sources = load(path, overrides)
    if spec is None:
        raise SpecError(found, sources)
    return spec, found


def load(
    path: str,
    overrides: Mapping[str, str] | None = None,
    text: str | None = None,
    needs_run: bool = True,
    config: Mapping[str, object] | None = None,
) -> tuple[Spec | None, tuple[Diagnostic, ...], Sources]:
    """The spec in a file, or in `text` as if it stood at `path`; also the name of a shipped spec.

    Gives no spec exactly if an error is among the diagnostics, except for a file without `train`
    section when no run is needed. Every mistake comes as a diagnostic whose place is in `sources`.
    `overrides` are the options `--set KEY=VALUE`; `config` is a foreign configuration that sets
    sizes by the model's `checkpoint` section, and must be of this model.
    """
    file = path if text is not None else spec_path(path)
    library = read_all(file, text)
    if file not in library.modules:
        return None, library.found, library.sources
    runs = bool(library.modules[file].own("train"))
    if runs or needs_run:
        library = needed(library)
    checked = check_library(library)
    sources = dict(library.sources)
    if overrides:
        sources["--set"] = "\n".join(f"{key}={value}" for key, value in overrides.items())
    if not checked.ok or not (runs or needs_run):
        return None, checked.found, sources
    said: tuple[Diagnostic, ...] = ()
    if config is not None:
        from fllmc.frontend.configured import configured

        try:
            overrides, said = configured(checked, overrides or {}, config)
        except DiagnosticError as error:
            return None, (*checked.found, *error.diagnostics), sources
        sources["--set"] = "\n".join(f"{key}={value}" for key, value in overrides.items())
    spec, found = lower(checked, overrides=overrides)
    wrong = any(each.severity == "error" for each in said)
    return (None if wrong else spec), (*checked.found, *said, *found), sources
