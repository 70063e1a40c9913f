"""One op as the rules for JAX see it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import jax.numpy as jnp

from fllmc.ir.types import Type

# JAX's arrays and tracers; its functions carry no precise types of their own.
Value: TypeAlias = Any
_jnp: Any = jnp


class Site(Protocol):
    """One op being run, as `codegen/jax_target.py` has it."""

    @property
    def operands(self) -> tuple[Type, ...]:
        """The operands' types."""
        ...

    @property
    def results(self) -> tuple[Type, ...]:
        """The results' types."""
        ...

    def dtype_of(self, kind: Type) -> Any:
        """The JAX dtype in which values of a type are held."""
        ...

    def size(self, name: str) -> int:
        """The size of a dim."""
        ...


def aligned(x: Value, names: Sequence[str], wanted: Sequence[str]) -> Value:
    """The array's dims in the wanted order, with new ones of length 1 where it has none."""
    x = _jnp.transpose(x, [names.index(name) for name in wanted if name in names])
    return _jnp.expand_dims(x, [i for i, name in enumerate(wanted) if name not in names])
