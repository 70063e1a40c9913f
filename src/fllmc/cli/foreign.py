"""What commands on foreign folders share: a spec sized by a folder, and the folder opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE

if TYPE_CHECKING:
    from fllmc.ir.foreign import Foreign
    from fllmc.runtime.foreign.folder import Folder

Sizes = tuple[tuple[str, int], ...]


def opened_folder(spec: str, path: Path, sets: Mapping[str, str]) -> tuple[Foreign, Folder, Sizes]:
    """The mapping that a spec declares, with sizes from the folder's configuration, and the folder.

    Warnings are reported. Raises DiagnosticError.
    """
    from fllmc.cli.output import report
    from fllmc.frontend import SpecError, load
    from fllmc.runtime.machine import require_packages

    require_packages()
    from fllmc.runtime.foreign.errors import NoForeignNames
    from fllmc.runtime.foreign.folder import open_folder, read_config

    opened = open_folder(path)
    loaded, found, sources = load(spec, sets, config=read_config(path))
    if loaded is None:
        raise SpecError(found, sources)
    report(found, sources)
    if loaded.foreign is None:
        raise DiagnosticError(NoForeignNames(NOWHERE, f"`{spec}`"))
    return loaded.foreign, opened, loaded.foreign.sizes
