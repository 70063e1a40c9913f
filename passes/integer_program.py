"""Programs of which some variables are whole, by HiGHS (Huangfu, Hall 2018) as scipy has it."""

# pyright: basic
# (scipy says little of its types)

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Final

import msgspec

NODES: Final = 10_000
"""Nodes of the search at most."""
WHOLE: Final = 1e-6
"""How far from a whole number the solver's results may be."""


class Row(msgspec.Struct, frozen=True):
    """low <= sum(factor * variable) <= high, for the terms (variable, factor)."""

    terms: tuple[tuple[int, float], ...]
    low: float = -inf
    high: float = inf


def solved(
    prices: Sequence[float], rows: Sequence[Row], most: Sequence[float], count: int
) -> tuple[float, list[float] | None]:
    """A bound below the least sum of price * variable, and the variables that were found, if any.

    Each variable is at least 0 and at most its number in `most`, and the first `count` are whole.
    The relaxation is solved first, and is the answer where these are whole.
    """
    import numpy as np
    from scipy.optimize import Bounds, LinearConstraint, milp
    from scipy.sparse import coo_matrix

    size = len(prices)
    data = [(number, at, by) for number, row in enumerate(rows) for at, by in row.terms]
    numbers, places, values = zip(*data, strict=True) if data else ((), (), ())
    matrix = coo_matrix((values, (numbers, places)), shape=(len(rows), size)).tocsr()
    least, greatest = np.array([r.low for r in rows]), np.array([r.high for r in rows])

    def run(whole: int) -> tuple[float, list[float] | None]:
        """The proven bound, and the solution."""
        found = milp(
            np.array(prices),
            integrality=np.array([whole] * count + [0] * (size - count)),
            bounds=Bounds(np.zeros(size), np.array(most)),  # pyright: ignore[reportArgumentType]
            constraints=LinearConstraint(matrix, least, greatest),  # pyright: ignore[reportArgumentType]
            options={"node_limit": NODES, "mip_rel_gap": 0.0},
        )
        if found.x is None:
            return 0.0, None
        proven = found.fun if found.mip_dual_bound is None else found.mip_dual_bound
        return float(proven), list(found.x)

    bound, answer = run(0)
    if answer is None or any(abs(x - round(x)) > WHOLE for x in answer[:count]):
        relaxation = bound
        bound, answer = run(1)
        bound = max(bound, relaxation)
    return bound, answer
