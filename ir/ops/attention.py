"""Attention and rotary positions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.ops.base import Attrs, Env, linear_in_one, require
from fllmc.ir.types import Type


class Rope(Attrs, frozen=True, tag="rope"):
    """Rotary positions (Su et al. 2021): turn pairs of `dim` by position along `along`.

    Pair i of n/2 turns by position * theta^(-2i/n). `layout` says which elements make a pair:
    `half` (i, i + n/2) as in the released Llama checkpoints' transformers layout, or `interleaved`
    (2i, 2i + 1). `inverse` turns back, which is also the transpose.
    """

    along: str
    dim: str
    theta: float = 10000.0
    layout: str = "half"
    inverse: bool = False

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(self.along in kind.names, f"{kind} has no dim {self.along}")
        require(self.dim in kind.names, f"{kind} has no dim {self.dim}")
        require(self.along != self.dim, f"{self.dim} can't be turned along itself")
        require(env.sizes.size(self.dim) % 2 == 0, f"{self.dim} must be even")
        require(self.layout in ("half", "interleaved"), f"no layout {self.layout}")
        linear_in_one(operands, (0,))
        return (kind,)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.dim, self.along)


class Attend(Attrs, frozen=True, tag="attend"):
    """softmax(q k^T * scale + mask) v, with grouped heads; also the log-sum-exp of the scores.

    q: [..., along, heads, dim]; k, v: [..., along, kv_heads, dim], in any layout. Query head h uses
    key head h // (heads / kv_heads). `mask` is `causal` or `none`. A dim that is both `heads` and
    `kv_heads` is plain multi-head attention. Results: [dims of q], and f32 (f64 for f64) [dims of q
    less dim].
    """

    along: str
    heads: str
    kv_heads: str
    dim: str
    scale: float
    mask: str = "causal"
    arity = 3

    def check(self, q: Type, k: Type, v: Type, env: Env) -> None:
        """The operands' rule, shared with the gradient op."""
        require(self.mask in ("causal", "none"), f"no mask {self.mask}")
        special = {self.along, self.heads, self.kv_heads, self.dim}
        require(len(special) == 3 + (self.heads != self.kv_heads), f"attend over {sorted(special)}")
        for name in (self.along, self.heads, self.dim):
            require(name in q.names, f"{q} has no dim {name}")
        for name in (self.along, self.kv_heads, self.dim):
            require(name in k.names, f"{k} has no dim {name}")
        require(k == v, f"keys {k} and values {v} differ")
        require(q.dtype == k.dtype, f"queries {q} and keys {k} differ in dtype")
        heads, groups = env.sizes.size(self.heads), env.sizes.size(self.kv_heads)
        require(
            heads % groups == 0, f"{self.kv_heads}={groups} does not divide {self.heads}={heads}"
        )
        require(q.axes_of(self.heads) == k.axes_of(self.kv_heads), f"{q}, {k}: heads placed apart")
        rest_q = set(q.without((self.heads,)).dims)
        require(rest_q == set(k.without((self.kv_heads,)).dims), f"{q} and {k} differ in a dim")

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        q, k, v = operands
        linear_in_one(operands, ())
        self.check(q, k, v, env)
        wide = "f64" if q.dtype == "f64" else "f32"
        return (q, msgspec.structs.replace(q.without((self.dim,)), dtype=wide))

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.along, self.dim)


class AttendGrad(Attend, frozen=True, tag="attend_grad"):
    """The gradient of attend: (q, k, v, out, lse, d_out) -> (d_q, d_k, d_v).

    FlashAttention-2 (Dao 2023), section 3.1: P = exp(S - lse), D = sum(d_out * out),
    dS = P * (d_out v^T - D).
    """

    arity = 6

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        q, k, v, out, lse, d_out = operands
        linear_in_one(operands, ())
        self.check(q, k, v, env)
        require(out == q and d_out == q, f"{out} and {d_out} must be as {q}")
        require(lse.names == q.without((self.dim,)).names, f"{lse} does not fit {q}")
        return (q, k, v)
