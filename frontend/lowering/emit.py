"""Typed expressions to ops, for the equations of one block or rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from msgspec import structs

from fllmc.frontend import ast
from fllmc.frontend.lowering.attention import attend_attrs, part_start, rope_attrs
from fllmc.frontend.semantics.sizes import evaluate
from fllmc.frontend.semantics.typed import (
    Apply,
    Combine,
    Composite,
    Concat,
    Constant,
    Contract,
    Conv,
    Dispatch,
    ExpertDot,
    ExpertTake,
    Join,
    Local,
    Number,
    OneHot,
    Param,
    Part,
    Pick,
    Plain,
    Positions,
    Prim,
    Recur,
    Reduce,
    Renamed,
    Shift,
    Size,
    Split,
    Tally,
    TopK,
    Typed,
    Use,
    primed,
)
from fllmc.frontend.semantics.typed_attention import Attend, Rope
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.types import Dim, Sizes

UNARY: Mapping[str, ops.AnyAttrs] = {
    "cos": ops.Cos(),
    "erf": ops.Erf(),
    "exp": ops.Exp(),
    "log": ops.Log(),
    "neg": ops.Neg(),
    "rsqrt": ops.Rsqrt(),
    "sigmoid": ops.Sigmoid(),
    "sin": ops.Sin(),
    "sqrt": ops.Sqrt(),
    "stop": ops.Stop(),
    "tanh": ops.Tanh(),
}
PLAIN: Mapping[str, ops.AnyAttrs] = {
    **UNARY,
    "add": ops.Add(),
    "sub": ops.Sub(),
    "mul": ops.Mul(),
    "div": ops.Div(),
    "pow": ops.Pow(),
    "min": ops.Minimum(),
    "max": ops.Maximum(),
    "less": ops.Less(),
    "where": ops.Where(),
}
SYMBOLS = frozenset({"add", "sub", "mul", "div", "pow", "neg"})
"""Written with signs, so they have no name that could be a path."""

Values = dict[str, int]
Composer = Callable[[Composite, Builder, tuple[int, ...]], int]
User = Callable[[Use, Builder, tuple[int, ...]], int]


class Emitter:
    """Adds the ops of typed expressions to a builder.

    `values` maps names to value numbers, `params` the names of parameters to theirs. `compute` is
    the dtype that parameters are cast to at each use.
    """

    def __init__(
        self,
        builder: Builder,
        values: Values,
        params: Mapping[str, Param],
        compute: str,
        composer: Composer,
        user: User,
    ) -> None:
        self.b = builder
        self.values = values
        self.params = params
        self.compute = compute
        self.composer = composer
        self.user = user

    def expr(self, typed: Typed) -> int:
        """The value number of an expression."""
        args = tuple(self.expr(arg) for arg in square(typed).args)
        self.b.span = typed.span
        self.b.path = ""
        value = self._value(typed, args)
        self.b.path = ""
        return value

    def _value(self, typed: Typed, args: tuple[int, ...]) -> int:
        b = self.b
        match typed.op:
            case Local(name=name):
                return self.values[name]
            case Constant(value=value):
                return b.constant(value)
            case Size(dim=dim):
                return b.constant(float(b.sizes.size(dim)))
            case Prim(name=name):
                return self._prim(name, typed, args)
            case Reduce(name=name, dims=dims):
                b.path = name
                return b.one((ops.ReduceSum if name == "sum" else ops.ReduceMax)(dims), *args)
            case Contract(dims=dims):
                b.path = "dot"
                return b.one(ops.Dot(dims), *self._alike(args))
            case Renamed(pairs=pairs):
                return b.one(ops.Rename(pairs), *args)
            case Number():
                b.path = "number"
                return b.one(ops.Number(self.wide), *args)
            case Split() | Join() | Pick() | OneHot() | Shift() | Concat():
                return self._indexed(typed, args)
            case Conv() | Recur() | Part():
                return self._along(typed.op, typed.kind.dims, args)
            case Plain(param=param):
                b.path = param
                value = b.cast(self.values[param], self.compute)
                return b.one(ops.Stop(), value) if self.params[param].state else value
            case Apply():
                return self._apply(typed.op, args[0])
            case Use():
                return self.user(typed.op, b, args)
            case Composite(name=name):
                b.path = name
                return self.composer(typed.op, b, args)
            case Rope():
                b.path = "rope"
                return b.one(rope_attrs(typed.op, b.sizes), *args)
            case Attend():
                return self._attend(typed.op, args)
            case TopK() | Tally() | Dispatch() | Combine() | ExpertDot() | ExpertTake():
                return self._experts(typed.op, args)
            case Positions(dim=dim):
                b.path = "positions"
                return b.one(ops.Iota(Dim(dim)))

    def _along(self, op: Conv | Recur | Part, dims: tuple[str, ...], args: tuple[int, ...]) -> int:
        """Windows and states along a dim, or a part of one."""
        b = self.b
        match op:
            case Conv():
                b.path = "conv"
                return b.one(conv(op, b.sizes), *args)
            case Recur():
                b.path = "recur"
                return b.one(recur(op), *recur_operands(b, op, args))
            case Part(of, to, first):
                b.path = "part"
                start = part_start(first, b.sizes, of, to)
                return arranged(b, b.one(ops.Shift(of, to, start), *args), dims)

    def _indexed(self, typed: Typed, args: tuple[int, ...]) -> int:
        """A dim split or shifted, two joined, or what indices pick."""
        b = self.b
        match typed.op:
            case Split(dim, outer, inner):
                dealt = b.one(ops.Chunk(dim, outer, inner), *args)
                return arranged(b, dealt, typed.kind.dims)
            case Join(outer, inner, dim):
                order = (inner, *(name for name in b.types[args[0]].names if name != inner))
                return b.one(ops.Unchunk(dim, outer, inner), arranged(b, args[0], order))
            case Pick(dim=dim):
                b.path = "pick"
                return b.one(ops.Pick(dim), *args)
            case OneHot(dim=dim):
                b.path = "one_hot"
                ones = b.one(ops.Fill(1.0, self.compute, b.types[args[0]].dims))
                return b.one(ops.Spread(Dim(dim)), ones, *args)
            case Shift(dim, by):
                b.path = "shift"
                return b.one(ops.Shift(dim, dim, by), *args)
            case Concat(first, second, to):
                b.path = "concat"
                one, other = self._alike(args)
                front = b.one(ops.Shift(first, to, 0), one)
                behind = b.one(ops.Shift(second, to, -b.sizes.size(first)), other)
                return arranged(b, b.add(front, behind), typed.kind.dims)
            case _:
                raise InternalError(f"{typed.op} is not about indices")

    def _prim(self, name: str, typed: Typed, args: tuple[int, ...]) -> int:
        b = self.b
        if name not in SYMBOLS:
            b.path = name
        args = self._alike(args)
        if name == "abs":
            return b.one(ops.Maximum(), args[0], b.neg(args[0]))
        if name == "sign":
            zero = b.constant(0.0)
            below = b.one(ops.Less(), args[0], zero)
            above = b.one(ops.Less(), zero, args[0])
            rest = b.one(ops.Where(), below, b.constant(-1.0), zero)
            return self._number(b.one(ops.Where(), above, b.constant(1.0), rest))
        if name == "where":
            return self._number(b.one(ops.Where(), *args))
        if name == "pow" and len(args) == 1:
            return b.mul(args[0], args[0])
        return b.one(PLAIN[name], *args)

    @property
    def wide(self) -> str:
        """The dtype of counts and losses."""
        return "f64" if self.compute == "f64" else "f32"

    def _alike(self, args: tuple[int, ...]) -> tuple[int, ...]:
        """The values, tensors in the dtype of the widest: counts are wider than what they meet."""
        kinds = [self.b.types[arg] for arg in args]
        wide = any(kind.dims and kind.dtype == self.wide for kind in kinds)
        if not wide or self.wide == self.compute:
            return args
        narrow = [kind.dims and kind.dtype == self.compute for kind in kinds]
        pairs = zip(args, narrow, strict=True)
        return tuple(self.b.cast(arg, self.wide) if cast else arg for arg, cast in pairs)

    def _number(self, value: int) -> int:
        """A chosen number as a tensor like others: a choice between constants is in f64."""
        return self.b.cast(value, self.compute) if self.b.types[value].dims else value

    def _apply(self, op: Apply, arg: int) -> int:
        """A contraction with the parameter, or a lookup; shared dims pass through primed names."""
        b, param = self.b, self.params[op.param]
        b.path = op.param
        weight = b.cast(self.values[op.param], self.compute)
        if not b.types[arg].index:
            arg = b.cast(arg, self.compute)  # numbers of positions and counts are wider
        stored = tuple(primed(name, param.source) for name in param.target)
        back = {new: old for old, new in zip(param.target, stored, strict=True)}
        source = stored if op.transposed else param.source
        if b.types[arg].index:
            return b.rename(b.one(ops.Take(source[0]), weight, arg), back)
        if op.transposed:
            arg = b.rename(arg, dict(zip(param.target, stored, strict=True)))
            return b.one(ops.Dot(source), arg, weight)
        return b.rename(b.one(ops.Dot(source), arg, weight), back)

    def _attend(self, op: Attend, args: tuple[int, ...]) -> int:
        b = self.b
        b.path = "attend"
        q, k, v = (b.cast(arg, self.compute) for arg in args[:3])
        extras = args[3:]
        attrs = attend_attrs(op, b.sizes)
        order = tuple(attrs.width if name == op.dim else name for name in b.types[k].names)
        return b.emit(attrs, q, k, arranged(b, v, order), *extras)[0]

    def _experts(
        self,
        op: TopK | Tally | Dispatch | Combine | ExpertDot | ExpertTake,
        args: tuple[int, ...],
    ) -> int:
        b = self.b
        match op:
            case TopK(over=over, to=to, indices=indices):
                b.path = "top_k"
                return b.emit(ops.TopK(over, to), *args)[indices]
            case Tally(along, choices, experts):
                b.path = "tally"
                return b.cast(b.one(ops.Tally(along, choices, Dim(experts)), *args), self.wide)
            case Dispatch(along, choices, to, order):
                b.path = "dispatch"
                attrs = ops.Dispatch(along, choices, tuple(map(Dim, to)))
                return b.one(attrs, arranged(b, args[0], order), args[1])
            case Combine(along, choices, of, order):
                b.path = "combine"
                rows = arranged(b, args[0], order)
                return b.one(ops.Combine(along, choices, of), rows, args[1])
            case ExpertDot(along, choices, experts, rows, contract, lead):
                b.path = "expert_dot"
                x, weight, chosen = args
                kept = (experts, *contract)
                own = (name for name in b.types[weight].names if name not in kept)
                x = arranged(b, x, (*lead, rows, *contract))
                weight = arranged(b, weight, (*kept, *own))
                attrs = ops.GroupedDot(experts, rows, along, choices, contract)
                return b.one(attrs, x, weight, chosen)
            case ExpertTake(along, choices, experts, rows, lead):
                # A row of nothing but a one, by matrices that have one row each.
                b.path = "expert_take"
                x, chosen = args
                own = (name for name in b.types[x].names if name != experts)
                tokens = b.types[chosen].dims[: len(lead) + 1]
                ones = b.one(ops.Fill(1.0, b.types[x].dtype, tokens))
                placed = b.one(ops.Dispatch(along, choices, (Dim(rows),)), ones, chosen)
                attrs = ops.GroupedDot(experts, rows, along, choices, ())
                return b.one(attrs, placed, arranged(b, x, (experts, *own)), chosen)


def conv(op: Conv, sizes: Sizes) -> ops.Conv:
    """A convolution's op; zeros before it by the size of its taps where a word says so."""

    def number(expr: ast.Expr) -> int:
        return int(evaluate(expr, lambda ref: sizes.size(ref.name), "a number of `conv`"))

    widths = [sizes.size(name) for name in op.taps]
    stride, pad = ([number(expr) for expr in exprs] for exprs in (op.stride, op.pad))
    before = {
        "causal": [width - 1 for width in widths],
        "same": [(width - 1) // 2 for width in widths],
    }.get(op.word, pad)
    return ops.Conv(op.along, op.taps, op.to, op.over, tuple(stride), tuple(before))


def recur(op: Recur) -> ops.Recur:
    """A recurrence's op."""
    return ops.Recur(op.along, op.dim, op.value, op.heads, op.groups)


def recur_operands(b: Builder, op: Recur, args: tuple[int, ...]) -> tuple[int, ...]:
    """Keys laid out as queries, and decays and rates with a number for each head and position."""
    q, k, v, *rows = args
    kind = b.types[v].without((op.value,))
    for place, row in enumerate(rows):
        if b.types[row] != kind:
            rows[place] = arranged(b, b.add(b.zeros(kind), row), kind.names)
    return (q, arranged(b, k, b.types[q].names), v, *rows)


def square(typed: Typed) -> Typed:
    """`x ^ 2` without its exponent; anything else as it is."""
    if typed.op == Prim("pow") and typed.args[1].op == Constant(2.0):
        return structs.replace(typed, args=typed.args[:1])
    return typed


def arranged(builder: Builder, value: int, order: tuple[str, ...]) -> int:
    """The value with its dims laid out in this order."""
    have = builder.types[value].names
    if sorted(have) != sorted(order):
        raise InternalError(f"{builder.name}: {have} can't be laid out as {order}")
    return value if have == order else builder.one(ops.Transpose(order), value)
