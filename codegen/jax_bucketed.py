"""A bucketed op in JAX: one run over what all regions hold, put behind one another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from fllmc.codegen.jax_site import Value
from fllmc.ir import ops

_jnp: Any = jnp


def bucketed(
    attrs: ops.Bucketed, run: Callable[[Sequence[Value]], Sequence[Value]], arrays: Sequence[Value]
) -> tuple[Value, ...]:
    """The results by region, and the sums; `run` is the function that the op runs."""
    lists, found = attrs.listed(arrays), list[Value]()
    flat = [_jnp.concatenate([part.reshape(-1) for part in parts]) for parts in lists]
    for result in run([*flat, *attrs.scalars(arrays)]):
        start = 0
        for part in lists[0] if result.ndim else ():
            found.append(result[start : start + part.size].reshape(part.shape))
            start += part.size
        found += [] if result.ndim else [result]
    return tuple(found)
