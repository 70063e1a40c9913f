"""store-frozen: model -> model, behind `apply-adapter`. Frozen parameters in the compute dtype.

    store-frozen{dtype=bf16}

    param embedding: f32[vocab, embed] {trainable=false}
    ->
    param embedding: bf16[vocab, embed] {trainable=false}

A full-precision copy is there to be stepped, and what is frozen is not. So the casts at its uses go
too. Where parameters are narrower than what is computed in, they stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.program import Level, Parameter, Program
from fllmc.ir.types import DTYPE_BYTES
from fllmc.passes.base import Context, Pass
from fllmc.passes.stored_forms import Form, restored


class Narrowed(Form, frozen=True):
    """Stored in a narrower dtype."""

    def value(self, b: Builder, parts: Sequence[int], dtype: str) -> int:
        """A cast, or nothing."""
        return b.cast(parts[0], dtype)


class StoreFrozen(Pass, frozen=True):
    """Store frozen parameters in `dtype`, that of computation."""

    name: ClassVar[str] = "store-frozen"
    takes: ClassVar[Level] = "model"
    gives: ClassVar[Level] = "model"
    keeps: ClassVar[str] = "math"

    dtype: str = "f32"

    def run(self, program: Program, cx: Context) -> Program:
        """The program with narrower frozen parameters."""
        forms = {
            p.name: Narrowed(p, (narrowed(p, self.dtype),))
            for p in program.parameters
            if not (p.trainable or p.holds) and DTYPE_BYTES[self.dtype] < DTYPE_BYTES[p.type.dtype]
        }
        return restored(program, forms)


def narrowed(parameter: Parameter, dtype: str) -> Parameter:
    """The parameter in another dtype."""
    kind = msgspec.structs.replace(parameter.type, dtype=dtype)
    return msgspec.structs.replace(parameter, type=kind)
