"""Every diagnostic code of the product, wherever its class stands, and its page."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path
from typing import Final

from fllmc.ir.diagnostics import Diagnostic, all_codes, explanation

PAGES: Final = Path(__file__).parent / "pages"
"""A file CODE.md for each code: meaning, reason, an example and the example put right."""
STAGES = ("ir", "frontend", "passes", "codegen", "runtime", "cli")


def every_code() -> dict[str, type[Diagnostic]]:
    """All codes and their classes, in order. They stand in modules called `...errors`."""
    for stage in STAGES:
        package = import_module(f"fllmc.{stage}")
        for module in pkgutil.walk_packages(package.__path__, f"fllmc.{stage}."):
            if module.name.endswith("errors"):
                import_module(module.name)
    return {
        code: kind for code, kind in all_codes().items() if kind.__module__.startswith("fllmc.")
    }


def page_of(kind: type[Diagnostic]) -> str:
    """The page of a code; what its class says, for one that has none yet."""
    path = PAGES / f"{kind.code}.md"
    return path.read_text(encoding="utf-8") if path.is_file() else explanation(kind)
