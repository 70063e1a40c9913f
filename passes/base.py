"""The one signature of a pass: from a valid program to a valid program, and nothing else.

A pass is a frozen Struct whose fields are its options; `passes/pipeline_text.py` prints it as
`recompute{cheap=false}` and reads it back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec

from fllmc.ir.diagnostics import Diagnostic, InternalError
from fllmc.ir.plan import Decision
from fllmc.ir.program import LEVELS, Level, Program
from fllmc.ir.types import Mesh


class Context(msgspec.Struct, frozen=True):
    """What a pass may know beside the program and its options: the mesh, and where it tells things.

    `report` takes diagnostics, `decide` what a pass chose among several ways.
    """

    mesh: Mesh
    report: Callable[[Diagnostic], None]
    decide: Callable[[Decision], None] = lambda decision: None


class Pass(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab", omit_defaults=True
):
    """A total function between valid programs. Its fields are its options.

    `takes` and `gives` are its levels. `keeps` is `bits` when the program means the same to the
    last bit, `math` when it means the same in exact arithmetic, `new` when the pass is there to
    change the meaning, such as the one that adds the loss.
    """

    name: ClassVar[str] = ""
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "bits"

    def accepts(self, level: Level) -> bool:
        """Whether the pass takes programs of that level."""
        return level == self.takes

    def level_after(self, level: Level) -> Level:
        """The level of the result for a program of an accepted level."""
        return self.gives

    def run(self, program: Program, cx: Context) -> Program:
        """The new program. Mistakes of the user are raised as DiagnosticError."""
        raise InternalError(f"pass {self.name or type(self).__name__} has no rule")


class AnyLevelPass(Pass, frozen=True):
    """A pass that takes a program of any of `levels` and gives one of the same level."""

    levels: ClassVar[tuple[Level, ...]] = LEVELS

    def accepts(self, level: Level) -> bool:
        """Whether the pass takes programs of that level."""
        return level in self.levels

    def level_after(self, level: Level) -> Level:
        """The same level."""
        return level
