"""Recurrences along a sequence whose state is a matrix: state-space layers and linear attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from fllmc.ir.ops.base import Attrs, Env, linear_in_one, merged, require
from fllmc.ir.types import Type


class Orders(NamedTuple):
    """The dims of a recurrence's operands in working order: the rest, along, heads, inner dim."""

    rest: tuple[str, ...]
    key: tuple[str, ...]
    value: tuple[str, ...]
    head: tuple[str, ...]


class Recur(Attrs, frozen=True, tag="recur"):
    """y_t = S_t^T q_t, with S_t = exp(g_t) S_{t-1} + k_t v_t^T and S_0 = 0, along a sequence.

    Operands: q, k: [..., along, groups, dim]; v: [..., along, heads, value]; g: [..., along,
    heads], in any layout; head h has the q and k of group h // (heads / groups). `heads` and
    `groups` may be one dim, or empty: then all heads share q and k. The result is as v.

    With a fifth operand, w: as g, what is written is the error of what the state would have
    answered, the delta rule: S_t = A + w_t k_t (v_t - A^T k_t)^T, where A = exp(g_t) S_{t-1}.

    The first is linear attention, and with q, k, v = C, B, dt x and g = dt A it is the state-space
    duality of Mamba-2 (Dao and Gu 2024); the second is gated DeltaNet (Yang et al. 2024).
    """

    along: str
    dim: str
    value: str
    heads: str = ""
    groups: str = ""
    arity = -1

    def orders(self, v: Type) -> Orders:
        """The working orders; what is in v beside its special dims comes first."""
        special = (self.along, self.heads, self.value)
        rest = tuple(name for name in v.names if name not in special)
        heads, groups = (tuple(filter(None, (name,))) for name in (self.heads, self.groups))
        head = (*rest, self.along, *heads)
        return Orders(rest, (*rest, self.along, *groups, self.dim), (*head, self.value), head)

    def check(self, operands: Sequence[Type], env: Env) -> None:
        """The operands' rule, shared with the gradient."""
        q, k, v, *rows = operands
        linear_in_one(operands, ())
        orders = self.orders(v)
        require(len(set(orders.value)) == len(orders.value), f"recur over {orders.value}")
        require(q == k, f"{q} and {k} differ")
        wanted = ((q, orders.key), (v, orders.value), *((row, orders.head) for row in rows))
        for kind, names in wanted:
            require(set(kind.names) == set(names), f"{kind} has not the dims {names}")
            require(kind.dtype == v.dtype, f"{kind} and {v} differ in dtype")
            for name in (*orders.rest, self.along):
                require(kind.axes_of(name) == v.axes_of(name), f"{name} is placed apart: {kind}")
        for row in rows:
            require(not self.heads or row.axes_of(self.heads) == v.axes_of(self.heads), f"{row}")
        few = env.sizes.size(self.groups) if self.groups else 1
        heads = env.sizes.size(self.heads) if self.heads else 1
        require(heads % few == 0, f"{self.groups}={few} does not divide {self.heads}={heads}")
        apart = few > 1 and q.axes_of(self.groups) != v.axes_of(self.heads)
        require(not apart, f"{q} and {v}: heads are placed apart")
        for kind, name in ((q, self.along), (q, self.dim)):
            require(not kind.axes_of(name), f"{name} is divided in {kind}")

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(len(operands) in (4, 5), f"recur takes 4 or 5 operands, not {len(operands)}")
        self.check(operands, env)
        return (operands[2],)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.along, self.dim)


class RecurGrad(Recur, frozen=True, tag="recur_grad"):
    """The gradient of recur: (its operands, d_y) -> one for each operand.

    Where q and k are whole and heads or values are divided, theirs are partial sums; so are those
    of g and w where values are.
    """

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        require(len(operands) in (5, 6), f"recur_grad takes 5 or 6 operands, not {len(operands)}")
        *given, d_out = operands
        linear_in_one(operands, ())
        self.check(given, env)
        q, _, v, *rows = given
        require(d_out == v, f"{d_out} must be as {v}")
        values = v.axes_of(self.value)
        lost = merged(values, v.axes_of(self.heads)) if self.heads else merged(values)
        shared = tuple(axis for axis in lost if axis not in q.axes)
        key = msgspec.structs.replace(q, partial=shared)
        sums = (msgspec.structs.replace(row, partial=merged(values)) for row in rows)
        return (key, key, v, *sums)
