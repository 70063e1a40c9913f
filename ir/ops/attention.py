"""Attention and rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import msgspec

from fllmc.ir.ops.base import Attrs, Env, linear_in_one, merged, require
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
        return (self.dim,)


class Attend(Attrs, frozen=True, tag="attend"):
    """softmax(q k^T * scale + mask) v, with grouped heads; also the log-sum-exp of the scores.

    q: [..., along, heads, dim]; k, v: [..., keys, kv_heads, dim], in any layout. Query head h uses
    key head h // (heads / kv_heads). `mask` is `causal` or `none`. A dim that is both `heads` and
    `kv_heads` is plain multi-head attention. Results: [dims of q], and f32 (f64 for f64) [dims of q
    less dim].

    Query i stands at position first + i of the dim `keys`, which is `along` unless it is named, and
    under a causal mask sees the keys up to there. Queries may be divided; keys are whole.

    With `documents` a further operand, the last, gives each query the first key that it sees, as an
    index of the dim `keys`: [dims of q less heads and dim]. That takes a causal mask.
    """

    along: str
    heads: str
    kv_heads: str
    dim: str
    scale: float
    mask: str = "causal"
    keys: str = ""
    first: int = 0
    documents: bool = False
    arity = -1
    tensors: ClassVar[int] = 3
    """Operands beside those of documents."""

    @property
    def over(self) -> str:
        """The dim of keys and values that is attended over."""
        return self.keys or self.along

    def check(self, q: Type, k: Type, v: Type, env: Env) -> None:
        """The operands' rule, shared with the gradient op."""
        require(self.mask in ("causal", "none"), f"no mask {self.mask}")
        special = {self.along, self.heads, self.kv_heads, self.dim}
        require(len(special) == 3 + (self.heads != self.kv_heads), f"attend over {sorted(special)}")
        for name in (self.along, self.heads, self.dim):
            require(name in q.names, f"{q} has no dim {name}")
        for name in (self.over, self.kv_heads, self.dim):
            require(name in k.names, f"{k} has no dim {name}")
        require(k == v, f"keys {k} and values {v} differ")
        require(q.dtype == k.dtype, f"queries {q} and keys {k} differ in dtype")
        heads, groups = env.sizes.size(self.heads), env.sizes.size(self.kv_heads)
        require(
            heads % groups == 0, f"{self.kv_heads}={groups} does not divide {self.heads}={heads}"
        )
        require(q.axes_of(self.heads) == k.axes_of(self.kv_heads), f"{q}, {k}: heads placed apart")
        rest_q = set(q.without((self.heads, self.along)).dims)
        rest_k = set(k.without((self.kv_heads, self.over)).dims)
        require(rest_q == rest_k, f"{q} and {k} differ in a dim")
        last = self.first + env.sizes.size(self.along)
        inside = self.first >= 0 and last <= env.sizes.size(self.over)
        require(inside or self.mask == "none", f"queries stand at {self.first} to {last}")
        self.check_keys(q, k)

    def split(self, operands: Sequence[Type]) -> tuple[Sequence[Type], Type | None]:
        """The operands, and apart from them where documents start."""
        count = self.tensors + self.documents
        require(len(operands) == count, f"{count} operands are needed, not {len(operands)}")
        return operands[: self.tensors], operands[-1] if self.documents else None

    def check_starts(self, q: Type, starts: Type | None) -> None:
        """Where documents start, for each query."""
        if starts is not None:
            require(self.mask == "causal", "documents take a causal mask")
            require(starts.index == self.over, f"{starts} are no indices of {self.over}")
            rest = q.without((self.heads, self.dim))
            require(set(starts.dims) == set(rest.dims), f"{starts} does not fit {q}")

    def check_keys(self, q: Type, k: Type) -> None:
        """Where queries and keys may be."""
        require(not k.axes_of(self.over), f"attention needs the keys' {self.over} whole: {k}")

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (q, k, v), starts = self.split(operands)
        linear_in_one(operands, ())
        self.check(q, k, v, env)
        self.check_starts(q, starts)
        wide = "f64" if q.dtype == "f64" else "f32"
        return (q, msgspec.structs.replace(q.without((self.dim,)), dtype=wide))

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.dim,)


class AttendGrad(Attend, frozen=True, tag="attend_grad"):
    """The gradient of attend: (q, k, v, out, lse, d_out, starts?) -> (d_q, d_k, d_v).

    FlashAttention-2 (Dao 2023), section 3.1: P = exp(S - lse), D = sum(d_out * out),
    dS = P * (d_out v^T - D). With divided queries, d_k and d_v are partial sums.
    """

    tensors: ClassVar[int] = 6

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (q, k, v, out, lse, d_out), starts = self.split(operands)
        linear_in_one(operands, ())
        self.check(q, k, v, env)
        self.check_starts(q, starts)
        require(out == q and d_out == q, f"{out} and {d_out} must be as {q}")
        require(lse.dims == q.without((self.dim,)).dims, f"{lse} does not fit {q}")
        summed = msgspec.structs.replace(k, partial=merged(self.summed(q)))
        return (q, summed, summed)

    def summed(self, q: Type) -> tuple[str, ...]:
        """The axes over which the gradients of keys and values are open."""
        return q.axes_of(self.along)


class RingAttend(Attend, frozen=True, tag="ring_attend"):
    """attend with keys divided as the queries are: blocks of keys and values go round the ranks.

    Each rank attends to one block after the other, the next on its way meanwhile, and combines
    results by their log-sum-exp (Liu et al. 2023, Ring Attention). `axes` are those of `along`.
    """

    axes: tuple[str, ...] = ()

    def check_keys(self, q: Type, k: Type) -> None:
        require(self.over == self.along, f"a ring of {self.along} and of {self.over}")
        have = (q.axes_of(self.along), k.axes_of(self.along))
        require(have == (self.axes, self.axes), f"{q} and {k}: not both divided by {self.axes}")
        require(bool(self.axes), f"{self.along} is not divided")


class RingAttendGrad(RingAttend, AttendGrad, frozen=True, tag="ring_attend_grad"):
    """The gradient of ring_attend: those of keys and values go round with them, and come home."""

    tensors: ClassVar[int] = 6

    def summed(self, q: Type) -> tuple[str, ...]:
        return ()
