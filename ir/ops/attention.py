"""Attention and rotary positions."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from fllmc.ir.ops.base import Attrs, Env, linear_in_one, merged, require
from fllmc.ir.rotary import Ramp, turning_speeds
from fllmc.ir.types import Dim, Sizes, Type


class Rope(Attrs, frozen=True, tag="rope"):
    """Rotary positions (Su et al. 2021): turn pairs of `dim` by position along `along`.

    Pair i of n/2 turns by position times its speed, which `ir/rotary.py` defines. Plain speeds are
    theta^(-2i/n). `layout` says which elements make a pair: `half` (i, i + n/2) as in the released
    Llama checkpoints' transformers layout, or `interleaved` (2i, 2i + 1). Where `rotary` is not 0,
    n is that, and of `dim` the n elements that stand behind the first `behind` are turned, and the
    others left as they were. What is turned is multiplied by `magnitude`. `inverse` is the
    transpose: it turns back.
    """

    along: str
    dim: str
    theta: float = 10000.0
    layout: str = "half"
    inverse: bool = False
    rotary: int = 0
    factor: float = 1.0
    ramp: str = ""
    low: float = 0.0
    high: float = 0.0
    factors: tuple[float, ...] = ()
    magnitude: float = 1.0
    behind: int = 0

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        (kind,) = operands
        require(self.along in kind.names, f"{kind} has no dim {self.along}")
        require(self.dim in kind.names, f"{kind} has no dim {self.dim}")
        require(self.along != self.dim, f"{self.dim} can't be turned along itself")
        width = self.width(env.sizes)
        require(width % 2 == 0, f"{self.dim} must be even")
        inside = 0 < width <= env.sizes.size(self.dim) - self.behind and self.behind >= 0
        require(inside, f"{self.dim} has no {width} elements behind {self.behind}")
        require(self.layout in ("half", "interleaved"), f"no layout {self.layout}")
        require(self.ramp in ("", "speed", "pair"), f"no ramp {self.ramp}")
        require(len(self.factors) in (0, width // 2), f"{len(self.factors)} factors for {width}")
        linear_in_one(operands, (0,))
        return (kind,)

    def width(self, sizes: Sizes) -> int:
        """How many elements of `dim` are turned."""
        return self.rotary or sizes.size(self.dim)

    def speeds(self, width: int) -> tuple[float, ...]:
        """The angle by which each pair turns from one position to the next."""
        ramp = Ramp(self.ramp, self.low, self.high)
        return turning_speeds(width, self.theta, self.factor, ramp, self.factors)

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return (self.dim,)


class Attend(Attrs, frozen=True, tag="attend"):
    """softmax(scores) v with grouped heads; also the log-sum-exp of the scores.

    q: [..., along, heads, dim]; k: [..., keys, kv_heads, dim]; v as k, with `value` for `dim` where
    that is named; in any layout. Query head h uses key head h // (heads / kv_heads). A dim that is
    both `heads` and `kv_heads` is plain multi-head attention. Results: [dims of q, `value` for
    `dim`], and f32 (f64 for f64) [dims of q less dim].

    Scores are q k^T * scale; then, where `cap` is not 0, cap * tanh(scores / cap) (Gemma 2). Where
    `bias` names a dim of distances, an operand [heads, bias] is added behind that: at key position
    less query position plus `origin`. Where `sinks` is set, an operand [heads] stands beside the
    scores of each query as one more, whose weight goes nowhere (gpt-oss).

    Query i stands at position first + i of the dim `keys`, which is `along` unless it is named.
    Under a `causal` mask it sees the keys up to there, and under `none` all. A `window` hides keys
    that are so far away or further. With `documents` a further operand, the last, gives each query
    the first key that it sees, as an index of the dim `keys`: [dims of q less heads and dim]. That
    takes a causal mask. Queries may be divided; keys are whole.
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
    window: int = 0
    cap: float = 0.0
    value: str = ""
    sinks: bool = False
    bias: str = ""
    origin: int = 0
    arity = -1

    @property
    def over(self) -> str:
        """The dim of keys and values that is attended over."""
        return self.keys or self.along

    @property
    def width(self) -> str:
        """The dim of values and results that stands where queries and keys have `dim`."""
        return self.value or self.dim

    @property
    def taken(self) -> int:
        """How many operands have a gradient; that takes three more, and documents one."""
        return 3 + self.sinks + bool(self.bias)

    @property
    def positional(self) -> bool:
        """Whether it matters at which positions queries and keys stand."""
        return self.mask == "causal" or bool(self.window or self.bias)

    def check(self, operands: Sequence[Type], env: Env) -> None:
        """The operands' rule, shared with the gradient op."""
        q, k, v = operands[:3]
        require(self.mask in ("causal", "none"), f"no mask {self.mask}")
        require(self.window >= 0 and self.cap >= 0, f"window {self.window}, cap {self.cap}")
        special = {self.along, self.heads, self.kv_heads, self.dim}
        require(len(special) == 3 + (self.heads != self.kv_heads), f"attend over {sorted(special)}")
        require(self.width == self.dim or self.width not in q.names, f"{q} has {self.width}")
        for name in (self.along, self.heads, self.dim):
            require(name in q.names, f"{q} has no dim {name}")
        for name in (self.over, self.kv_heads, self.dim):
            require(name in k.names, f"{k} has no dim {name}")
        require(v == self.wide(k), f"keys {k} and values {v} differ")
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
        bound = self.mask == "causal" or self.window > 0
        require(inside or not bound, f"queries stand at {self.first} to {last}")
        self.check_keys(q, k)
        self.check_extras(operands, env)
        self.check_starts(q, operands[-1])

    def check_keys(self, q: Type, k: Type) -> None:
        """Where queries and keys may be."""
        require(not k.axes_of(self.over), f"attention needs the keys' {self.over} whole: {k}")

    def check_extras(self, operands: Sequence[Type], env: Env) -> None:
        """The rule of sinks and bias."""
        heads = operands[0].dim(self.heads)
        if self.sinks:
            sinks = operands[3]
            require(sinks.dims == (heads,), f"sinks {sinks} are not [{heads}]")
        if self.bias:
            bias = operands[self.taken - 1]
            require(set(bias.names) == {self.heads, self.bias}, f"the bias is {bias}")
            require(bias.dim(self.heads) == heads, f"{bias} is not divided as the queries are")
            require(not bias.axes_of(self.bias), f"{self.bias} must be whole: {bias}")
            low = self.origin - self.first - env.sizes.size(self.along) + 1
            high = self.origin - self.first + env.sizes.size(self.over)
            fits = low >= 0 and high <= env.sizes.size(self.bias)
            require(fits, f"{bias} has no distances {low} to {high}")

    def check_starts(self, q: Type, starts: Type) -> None:
        """Where documents start, for each query."""
        if self.documents:
            require(self.mask == "causal", "documents take a causal mask")
            require(starts.index == self.over, f"{starts} are no indices of {self.over}")
            rest = q.without((self.heads, self.dim))
            require(set(starts.dims) == set(rest.dims), f"{starts} does not fit {q}")

    def wide(self, kind: Type) -> Type:
        """A type with `dim`, as it is with the dim of values instead."""
        return kind.placed(Dim(self.width) if d.name == self.dim else d for d in kind.dims)

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        count = self.taken + self.documents
        require(len(operands) == count, f"{len(operands)} operands for {count}")
        linear_in_one(operands, ())
        self.check(operands, env)
        q = operands[0]
        wide = "f64" if q.dtype == "f64" else "f32"
        return (self.wide(q), msgspec.structs.replace(q.without((self.dim,)), dtype=wide))

    def whole(self, operands: Sequence[Type]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(filter(None, (self.dim, self.width, self.bias))))


class AttendGrad(Attend, frozen=True, tag="attend_grad"):
    """The gradients of attend's operands, of these and (out, lse, d_out, starts?), in their order.

    FlashAttention-2 (Dao 2023), section 3.1: P = exp(S - lse), D = sum(d_out * out),
    dS = P * (d_out v^T - D). It also holds with a sink in lse, whose own score has d_out v^T = 0.
    With divided queries, those of keys and values are partial sums; those of sinks and bias are
    over all axes that divide queries and their batch.
    """

    def infer(self, operands: Sequence[Type], env: Env) -> tuple[Type, ...]:
        count = self.taken + 3 + self.documents
        require(len(operands) == count, f"{len(operands)} operands for {count}")
        linear_in_one(operands, ())
        self.check(operands, env)
        q, k, v = operands[:3]
        out, lse, d_out = operands[self.taken : self.taken + 3]
        require(out == d_out == self.wide(q), f"{out} and {d_out} must be as {self.wide(q)}")
        require(lse.dims == q.without((self.dim,)).dims, f"{lse} does not fit {q}")
        among = merged(self.summed(q))
        everywhere = merged(*(dim.axes for dim in q.dims if dim.name != self.heads))
        extras = (msgspec.structs.replace(x, partial=everywhere) for x in operands[3 : self.taken])
        return (q, *(msgspec.structs.replace(x, partial=among) for x in (k, v)), *extras)

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

    def summed(self, q: Type) -> tuple[str, ...]:
        return ()
