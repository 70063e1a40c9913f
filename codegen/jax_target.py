"""Running unplaced IR programs with JAX: an oracle that shares no rule with the other back ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import lax

from fllmc.ir import ops, philox
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Function, Program
from fllmc.ir.types import Sizes, Type

# JAX's arrays and tracers; its functions carry no precise types of their own.
Value: TypeAlias = Any
_jnp: Any = jnp
_lax: Any = lax
_jax: Any = jax

DTYPES: Mapping[str, str] = {
    "f64": "float64",
    "f32": "float32",
    "bf16": "bfloat16",
    "f16": "float16",
    "i64": "int64",
    "i32": "int32",
    "bool": "bool",
}


def jax_function(
    program: Program, entry: str, *, exact: bool = True
) -> Callable[[Mapping[str, Value]], dict[str, Value]]:
    """The function as one over arrays by input name, giving arrays by output name.

    With `exact`, all floating-point values are float64 whatever their types say, as in the
    evaluator; the caller must have enabled 64-bit values in JAX.
    """
    function = program.function(entry)
    runner = _Runner(program, exact)

    def run(arguments: Mapping[str, Value]) -> dict[str, Value]:
        names = [given.name for given in function.inputs]
        if sorted(names) != sorted(arguments):
            raise InternalError(f"{entry} takes {sorted(names)}, not {sorted(arguments)}")
        kinds = function.signature.inputs
        values = [
            _jnp.asarray(arguments[name], runner.dtype(kind))
            for name, kind in zip(names, kinds, strict=True)
        ]
        return dict(zip(function.outputs, runner.run(function, values), strict=True))

    return run


class _Runner:
    """The program's functions, sizes and choice of dtypes."""

    def __init__(self, program: Program, exact: bool) -> None:
        self.functions = {function.name: function for function in program.functions}
        self.sizes: Sizes = program.sizes
        self.exact = exact

    def dtype(self, kind: Type) -> Any:
        """The JAX dtype in which a type's values are held."""
        return _jnp.dtype("float64" if self.exact and kind.is_float else DTYPES[kind.dtype])

    def run(self, function: Function, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """A function's results."""
        values = dict(enumerate(inputs))
        for op in function.ops:
            operands = tuple(function.types[number] for number in op.operands)
            results = tuple(function.types[number] for number in op.results)
            rule = JAX.get(type(op.attrs))
            if rule is None or any(kind.axes or kind.partial for kind in (*operands, *results)):
                raise InternalError(f"{op.kind} of a placed program: JAX runs unplaced ones")
            site = _Site(self, operands, results)
            found = rule(op.attrs, site, *(values[number] for number in op.operands))
            values.update(zip(op.results, _listed(found), strict=True))
        return tuple(values[number] for number in function.results)


class _Site(NamedTuple):
    """One op being run: its types and the runner."""

    runner: _Runner
    operands: tuple[Type, ...]
    results: tuple[Type, ...]

    def size(self, name: str) -> int:
        """The size of a dim."""
        return self.runner.sizes.size(name)

    @property
    def dtype(self) -> Any:
        """The first result's dtype."""
        return self.runner.dtype(self.results[0])


Rule: TypeAlias = Callable[..., Value]


def _listed(found: Any) -> tuple[Value, ...]:
    """A rule's results, however many."""
    return cast("tuple[Value, ...]", found) if isinstance(found, tuple) else (found,)


def _aligned(x: Value, names: Sequence[str], wanted: Sequence[str]) -> Value:
    """The array's dims in the wanted order, with new ones of length 1 where it has none."""
    x = _jnp.transpose(x, [names.index(name) for name in wanted if name in names])
    return _jnp.expand_dims(x, [i for i, name in enumerate(wanted) if name not in names])


def _silu_grad(d: Value, x: Value) -> Value:
    """d times the derivative of silu."""
    s = _jax.nn.sigmoid(x)
    return d * s * (1.0 + x * (1.0 - s))


def _plus_product(base: Value, a: Value, b: Value) -> Value:
    """base + a * b."""
    return base + a * b


def _less_product(base: Value, a: Value, b: Value) -> Value:
    """base - a * b."""
    return base - a * b


def _elementwise(function: Callable[..., Value]) -> Rule:
    """A JAX function over operands broadcast by name; `f64[]` scalars take the others' dtype."""

    def rule(attrs: ops.Attrs, site: _Site, *arrays: Value) -> Value:
        tensors = [a.dtype for a, kind in zip(arrays, site.operands, strict=True) if kind.dims]
        shaped: list[Value] = []
        for array, kind in zip(arrays, site.operands, strict=True):
            scalar = tensors and not kind.dims and kind.dtype == "f64"
            given = array.astype(tensors[-1]) if scalar else array
            shaped.append(_aligned(given, kind.names, site.results[0].names))
        return function(*shaped)

    return rule


def _same(attrs: ops.Attrs, site: _Site, x: Value) -> Value:
    return x


def _cast(attrs: ops.Cast, site: _Site, x: Value) -> Value:
    return x.astype(site.dtype)


def _stop(attrs: ops.Stop, site: _Site, x: Value) -> Value:
    return _lax.stop_gradient(x)


def _transpose(attrs: ops.Transpose, site: _Site, x: Value) -> Value:
    return _aligned(x, site.operands[0].names, attrs.order)


def _fill(attrs: ops.Fill, site: _Site) -> Value:
    return _jnp.full(site.runner.sizes.shape(site.results[0]), attrs.value, site.dtype)


def _iota(attrs: ops.Iota, site: _Site) -> Value:
    first = attrs.first
    return _jnp.arange(first, first + site.size(attrs.dim.name), dtype=site.dtype)


class _JaxLibrary:
    """What the random bits ask of an array library."""

    def double(self, x: Value) -> Value:
        """`x` as float64."""
        return _jnp.asarray(x, _jnp.float64)

    def sqrt(self, x: Value) -> Value:
        """The square root."""
        return _jnp.sqrt(x)

    def frexp(self, x: Value) -> tuple[Value, Value]:
        """Mantissa and exponent."""
        return _jnp.frexp(x)


def _random(attrs: ops.Random, site: _Site, seed: Value, samples: Value, *layer: Value) -> Value:
    whole = _jnp.int64
    shape = tuple(site.size(dim.name) for dim in attrs.dims)
    count = 1
    for extent in shape[1:]:
        count *= extent
    layers = layer[0].astype(whole) if layer else 0
    at = philox.Draw(seed.astype(whole), attrs.place, samples.astype(whole)[:, None], layers)
    drawn = philox.uniform_at(at, _jnp.arange(count, dtype=whole)[None], _JaxLibrary())
    return _jnp.reshape(drawn, shape).astype(site.dtype)


def _letters(site: _Site) -> Callable[[Sequence[str]], str]:
    names = dict.fromkeys(name for kind in site.operands for name in kind.names)
    letter = {name: chr(ord("a") + number) for number, name in enumerate(names)}
    return lambda wanted: "".join(letter[name] for name in wanted)


def _dot(attrs: ops.Dot, site: _Site, a: Value, b: Value) -> Value:
    spell = _letters(site)
    (left, right), (result,) = site.operands, site.results
    equation = f"{spell(left.names)},{spell(right.names)}->{spell(result.names)}"
    return _jnp.einsum(equation, a, b, precision="highest")


def _dot_add(attrs: ops.DotAdd, site: _Site, base: Value, a: Value, b: Value) -> Value:
    return base + _dot(attrs, site._replace(operands=site.operands[1:]), a, b)


def _put_add(attrs: ops.PutAdd, site: _Site, base: Value, index: Value, value: Value) -> Value:
    return base + _put(attrs, site._replace(operands=site.operands[1:]), index, value)


def _places(attrs: ops.Reduce, site: _Site) -> tuple[int, ...]:
    return tuple(site.operands[0].names.index(name) for name in attrs.dims)


def _sum(attrs: ops.ReduceSum, site: _Site, x: Value) -> Value:
    return _jnp.sum(x, axis=_places(attrs, site))


def _max(attrs: ops.ReduceMax, site: _Site, x: Value) -> Value:
    return _jnp.max(x, axis=_places(attrs, site))


def _one_hot(index: Value, size: int, dtype: Any) -> Value:
    # All zeros for an index outside of the dim, which is what take, pick and spread want.
    return _jax.nn.one_hot(index, size, dtype=dtype)


def _take(attrs: ops.Take, site: _Site, table: Value, index: Value) -> Value:
    rows = _jnp.moveaxis(table, site.operands[0].names.index(attrs.dim), 0)
    held = (index >= 0) & (index < rows.shape[0])
    found = _jnp.take(rows, index, axis=0, mode="clip")
    return _jnp.where(held.reshape(held.shape + (1,) * (rows.ndim - 1)), found, 0)


def _put(attrs: ops.Put, site: _Site, index: Value, value: Value) -> Value:
    positions, kind = site.operands
    rest = site.results[0].names[1:]
    values = _aligned(value, kind.names, (*positions.names, *rest))
    rows = site.size(attrs.dim.name)
    # JAX counts negative indices from the end; they must be dropped as those beyond the end are.
    target = _jnp.where(index < 0, rows, index)
    shape = (rows, *values.shape[index.ndim :])
    return _jnp.zeros(shape, values.dtype).at[target].add(values, mode="drop")


def _pick(attrs: ops.Pick, site: _Site, x: Value, index: Value) -> Value:
    kind, positions = site.operands
    last = _jnp.moveaxis(x, kind.names.index(attrs.dim), -1)
    at = _aligned(index, positions.names, site.results[0].names)
    return _jnp.sum(_jnp.where(_one_hot(at, last.shape[-1], bool), last, 0), axis=-1)


def _spread(attrs: ops.Spread, site: _Site, value: Value, index: Value) -> Value:
    kind, positions = site.operands
    at = _aligned(index, positions.names, kind.names)
    return value[..., None] * _one_hot(at, site.size(attrs.dim.name), value.dtype)


def _rope(attrs: ops.Rope, site: _Site, x: Value) -> Value:
    """Each pair as a complex number, multiplied by a unit one."""
    names = site.operands[0].names
    order = (*(n for n in names if n not in (attrs.along, attrs.dim)), attrs.along, attrs.dim)
    rows = _aligned(x, names, order)
    length, width = rows.shape[-2:]
    # Pairs as the last two dims: (pair, side) or (side, pair).
    halves = attrs.layout == "half"
    pairs = rows.reshape(*rows.shape[:-1], *((2, width // 2) if halves else (width // 2, 2)))
    real, imaginary = (_jnp.take(pairs, i, axis=-2 if halves else -1) for i in (0, 1))
    speeds = _jnp.exp(-_jnp.log(attrs.theta) * _jnp.arange(0, width, 2) / width)
    angles = _jnp.outer(_jnp.arange(length), speeds).astype(x.dtype)
    turn = _lax.complex(_jnp.cos(angles), (-1 if attrs.inverse else 1) * _jnp.sin(angles))
    turned = _lax.complex(real, imaginary) * turn
    sides = _jnp.stack([turned.real, turned.imag], axis=-2 if halves else -1)
    return _aligned(sides.reshape(rows.shape), order, names)


def _scores(attrs: ops.Attend, q: Value, k: Value) -> Value:
    """Masked scores [rest, heads, queries, keys] of q and k in [rest, heads, along, dim]."""
    scores = _jnp.einsum("...qd,...kd->...qk", q, k, precision="highest") * attrs.scale
    if attrs.mask == "causal":
        seen = _jnp.tril(_jnp.ones(scores.shape[-2:], bool), attrs.first)
        scores = _jnp.where(seen, scores, -_jnp.inf)
    return scores


def _attend(attrs: ops.Attend, site: _Site, q: Value, k: Value, v: Value) -> tuple[Value, Value]:
    q_names, k_names = site.operands[0].names, site.operands[1].names
    special = (attrs.along, attrs.heads, attrs.dim)
    rest = tuple(name for name in q_names if name not in special)
    q_order = (*rest, attrs.heads, attrs.along, attrs.dim)
    k_order = (*rest, attrs.kv_heads, attrs.over, attrs.dim)
    repeats = site.size(attrs.heads) // site.size(attrs.kv_heads)
    k, v = (_jnp.repeat(_aligned(x, k_names, k_order), repeats, axis=-3) for x in (k, v))
    scores = _scores(attrs, _aligned(q, q_names, q_order), k)
    lse = _jax.nn.logsumexp(scores, axis=-1)
    out = _jnp.einsum(
        "...qk,...kd->...qd", _jax.nn.softmax(scores, axis=-1), v, precision="highest"
    )
    lse_names = tuple(name for name in q_names if name != attrs.dim)
    return _aligned(out, q_order, q_names), _aligned(lse, q_order[:-1], lse_names)


def _attend_grad(attrs: ops.AttendGrad, site: _Site, *arrays: Value) -> tuple[Value, ...]:
    """By JAX's own reverse mode over attend; the saved output and log-sum-exp are not used."""
    q, k, v, _, _, d_out = arrays
    forward: Callable[..., Value] = lambda *args: _attend(attrs, site, *args)[0]  # noqa: E731
    _, pull = _jax.vjp(forward, q, k, v)
    return tuple(pull(d_out))


def _call(attrs: ops.Call | ops.Fused, site: _Site, *arrays: Value) -> tuple[Value, ...]:
    return site.runner.run(site.runner.functions[attrs.function], arrays)


def _scan(attrs: ops.Scan, site: _Site, *arrays: Value) -> tuple[Value, ...]:
    function = site.runner.functions[attrs.function]
    stop = attrs.carries + attrs.slices

    def body(carry: tuple[Value, ...], own: tuple[Value, ...]) -> tuple[Value, Value]:
        results = site.runner.run(function, (*carry, *own, *arrays[stop:]))
        return results[: attrs.carries], results[attrs.carries :]

    if attrs.final:
        return _scan_with_final(attrs, site, arrays, body)
    carries, stacked = _lax.scan(
        body,
        tuple(arrays[: attrs.carries]),
        tuple(arrays[attrs.carries : stop]),
        length=site.size(attrs.over),
        reverse=attrs.reverse,
    )
    return (*carries, *stacked)


def _scan_with_final(
    attrs: ops.Scan, site: _Site, arrays: tuple[Value, ...], body: Any
) -> tuple[Value, ...]:
    """All turns but the last by the body, then the last one."""
    stop, count = attrs.carries + attrs.slices, site.size(attrs.over)
    carry, slices = tuple(arrays[: attrs.carries]), arrays[attrs.carries : stop]
    most = slice(1, None) if attrs.reverse else slice(None, -1)
    own = tuple(value[most] for value in slices)
    carry, stacked = _lax.scan(body, carry, own, length=count - 1, reverse=attrs.reverse)
    last = tuple(value[0 if attrs.reverse else -1] for value in slices)
    function = site.runner.functions[attrs.final]
    results = site.runner.run(function, (*carry, *last, *arrays[stop:]))
    rest = results[attrs.carries :]
    pairs = [(one[None], many) for one, many in zip(rest, stacked, strict=True)]
    joined = [_jnp.concatenate(pair if attrs.reverse else pair[::-1]) for pair in pairs]
    return (*results[: attrs.carries], *joined)


def _add_all(*arrays: Value) -> Value:
    total = arrays[0]
    for array in arrays[1:]:
        total = total + array
    return total


JAX: dict[type[ops.Attrs], Rule] = {
    ops.Add: _elementwise(_jnp.add),
    ops.AddN: _elementwise(_add_all),
    ops.Attend: _attend,
    ops.AttendGrad: _attend_grad,
    ops.Call: _call,
    ops.Cast: _cast,
    ops.Cos: _elementwise(_jnp.cos),
    ops.Div: _elementwise(_jnp.divide),
    ops.Dot: _dot,
    ops.DotAdd: _dot_add,
    ops.Erf: _elementwise(_jax.scipy.special.erf),
    ops.Exp: _elementwise(_jnp.exp),
    ops.Fill: _fill,
    ops.Fused: _call,
    ops.Iota: _iota,
    ops.Less: _elementwise(_jnp.less),
    ops.Log: _elementwise(_jnp.log),
    ops.Maximum: _elementwise(_jnp.maximum),
    ops.Minimum: _elementwise(_jnp.minimum),
    ops.Mul: _elementwise(_jnp.multiply),
    ops.MulAdd: _elementwise(_plus_product),
    ops.MulSub: _elementwise(_less_product),
    ops.Neg: _elementwise(_jnp.negative),
    ops.Pick: _pick,
    ops.Pow: _elementwise(_jnp.power),
    ops.Put: _put,
    ops.PutAdd: _put_add,
    ops.Random: _random,
    ops.ReduceMax: _max,
    ops.ReduceSum: _sum,
    ops.Rename: _same,
    ops.Rope: _rope,
    ops.Rsqrt: _elementwise(_lax.rsqrt),
    ops.Scan: _scan,
    ops.Sigmoid: _elementwise(_jax.nn.sigmoid),
    ops.Silu: _elementwise(_jax.nn.silu),
    ops.SiluGrad: _elementwise(_silu_grad),
    ops.Sin: _elementwise(_jnp.sin),
    ops.Spread: _spread,
    ops.Sqrt: _elementwise(_jnp.sqrt),
    ops.Stop: _stop,
    ops.Sub: _elementwise(_jnp.subtract),
    ops.Take: _take,
    ops.Tanh: _elementwise(_jnp.tanh),
    ops.Transpose: _transpose,
    ops.Where: _elementwise(_jnp.where),
}
