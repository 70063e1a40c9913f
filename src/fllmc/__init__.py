"""A declarative compiler for training large models, from one GPU to thousands.

`fllmc` is the door. Behind it, one way only: `frontend` (text to program), `passes` (program to
program), `codegen` (program to artifact), `runtime` (artifact to training run), all in the words
of `ir`. Importing this package imports nothing else; `fllmc.compile` and `fllmc.load` import what
they need when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fllmc.codegen.artifact import read_artifact as load
    from fllmc.driver import compile_spec as compile

__version__ = "0.1.0"
__all__ = ["__version__", "compile", "load"]


def __getattr__(name: str) -> object:
    """`compile` is `driver.compile_spec`, and `load` is `codegen.artifact.read_artifact`."""
    if name == "compile":
        from fllmc.driver import compile_spec

        return compile_spec
    if name == "load":
        from fllmc.codegen.artifact import read_artifact

        return read_artifact
    raise AttributeError(f"module 'fllmc' has no attribute '{name}'")
