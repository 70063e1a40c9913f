"""Running unplaced IR programs with JAX: an oracle that shares no rule with the other back ends."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax import lax

from fllmc.codegen import jax_attention as attention
from fllmc.codegen import jax_blockwise as blockwise
from fllmc.codegen import jax_chunks as chunks
from fllmc.codegen import jax_experts as experts
from fllmc.codegen import jax_indexing as indexing
from fllmc.codegen import jax_sequence as sequence
from fllmc.codegen.jax_bucketed import bucketed
from fllmc.codegen.jax_site import aligned
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
    "i8": "int8",
    "u8": "uint8",
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

    def dtype_of(self, kind: Type) -> Any:
        """The JAX dtype in which values of a type are held."""
        return self.runner.dtype(kind)

    @property
    def dtype(self) -> Any:
        """The first result's dtype."""
        return self.runner.dtype(self.results[0])


Rule: TypeAlias = Callable[..., Value]


def _listed(found: Any) -> tuple[Value, ...]:
    """A rule's results, however many."""
    return cast("tuple[Value, ...]", found) if isinstance(found, tuple) else (found,)


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
            shaped.append(aligned(given, kind.names, site.results[0].names))
        return function(*shaped)

    return rule


def _same(attrs: ops.Attrs, site: _Site, x: Value) -> Value:
    return x


def _cast(attrs: ops.Cast | ops.Number, site: _Site, x: Value) -> Value:
    return x.astype(site.dtype)


def _stop(attrs: ops.Stop, site: _Site, x: Value) -> Value:
    return _lax.stop_gradient(x)


def _transpose(attrs: ops.Transpose, site: _Site, x: Value) -> Value:
    return aligned(x, site.operands[0].names, attrs.order)


def _fill(attrs: ops.Fill, site: _Site) -> Value:
    return _jnp.full(site.runner.sizes.shape(site.results[0]), attrs.value, site.dtype)


def _iota(attrs: ops.Iota, site: _Site) -> Value:
    return _jnp.arange(site.size(attrs.dim.name), dtype=site.dtype) // attrs.each + attrs.first


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
    return base + indexing.put(attrs, site._replace(operands=site.operands[1:]), index, value)


def _places(attrs: ops.Reduce, site: _Site) -> tuple[int, ...]:
    return tuple(site.operands[0].names.index(name) for name in attrs.dims)


def _sum(attrs: ops.ReduceSum, site: _Site, x: Value) -> Value:
    return _jnp.sum(x, axis=_places(attrs, site))


def _max(attrs: ops.ReduceMax, site: _Site, x: Value) -> Value:
    return _jnp.max(x, axis=_places(attrs, site))


def _call(attrs: ops.Call | ops.Fused, site: _Site, *arrays: Value) -> tuple[Value, ...]:
    return site.runner.run(site.runner.functions[attrs.function], arrays)


def _bucketed(attrs: ops.Bucketed, site: _Site, *arrays: Value) -> tuple[Value, ...]:
    function = site.runner.functions[attrs.function]
    return bucketed(attrs, lambda given: site.runner.run(function, given), arrays)


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
    ops.Attend: attention.attend,
    ops.AttendGrad: attention.attend_grad,
    ops.Call: _call,
    ops.Cast: _cast,
    ops.Number: _cast,
    ops.Combine: experts.combine,
    ops.Conv: sequence.conv,
    ops.ConvInput: sequence.conv_grad,
    ops.ConvWeight: sequence.conv_grad,
    ops.Recur: sequence.recur,
    ops.RecurGrad: sequence.recur_grad,
    ops.Cos: _elementwise(_jnp.cos),
    ops.Dequantize: blockwise.dequantize,
    ops.Dispatch: experts.dispatch,
    ops.Div: _elementwise(_jnp.divide),
    ops.Dot: _dot,
    ops.DotAdd: _dot_add,
    ops.Erf: _elementwise(_jax.scipy.special.erf),
    ops.Exp: _elementwise(_jnp.exp),
    ops.Fill: _fill,
    ops.Fused: _call,
    ops.Bucketed: _bucketed,
    ops.GroupedDot: experts.grouped_dot,
    ops.GroupedOuter: experts.grouped_outer,
    ops.Iota: _iota,
    ops.Less: _elementwise(_jnp.less),
    ops.Log: _elementwise(_jnp.log),
    ops.Maximum: _elementwise(_jnp.maximum),
    ops.Minimum: _elementwise(_jnp.minimum),
    ops.Mul: _elementwise(_jnp.multiply),
    ops.MulAdd: _elementwise(_plus_product),
    ops.MulSub: _elementwise(_less_product),
    ops.Neg: _elementwise(_jnp.negative),
    ops.Chunk: chunks.chunk,
    ops.Unchunk: chunks.unchunk,
    ops.Pick: indexing.pick,
    ops.Record: indexing.record,
    ops.Pow: _elementwise(_jnp.power),
    ops.Put: indexing.put,
    ops.PutAdd: _put_add,
    ops.Quantize: blockwise.quantize,
    ops.Random: _random,
    ops.ReduceMax: _max,
    ops.ReduceSum: _sum,
    ops.Reindex: indexing.reindex,
    ops.Rename: _same,
    ops.Rope: attention.rope,
    ops.Rsqrt: _elementwise(_lax.rsqrt),
    ops.Scan: _scan,
    ops.Sigmoid: _elementwise(_jax.nn.sigmoid),
    ops.Silu: _elementwise(_jax.nn.silu),
    ops.SiluGrad: _elementwise(_silu_grad),
    ops.Sin: _elementwise(_jnp.sin),
    ops.Shift: indexing.shift,
    ops.Spread: indexing.spread,
    ops.Sqrt: _elementwise(_jnp.sqrt),
    ops.Stop: _stop,
    ops.Sub: _elementwise(_jnp.subtract),
    ops.Take: indexing.take,
    ops.Tally: experts.tally,
    ops.Tanh: _elementwise(_jnp.tanh),
    ops.TopK: experts.top_k,
    ops.Transpose: _transpose,
    ops.Where: _elementwise(_jnp.where),
}
