"""Random valid programs, and how to make a placed one plain again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate_parts import as_stored
from fllmc.ir.program import DimSize, Function, Init, Level, Parameter, Program
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Dim, Mesh, Sizes, Type

DIMS: Mapping[str, int] = {"batch": 4, "seq": 4, "embed": 4, "ffn": 4, "layers": 3, "one": 1}
ONE_DEVICE = Mesh()
MESH = Mesh((Axis("data", 2), Axis("tensor", 2)))
NAMES = ("batch", "seq", "embed", "ffn")
PLACEMENTS: tuple[tuple[str, ...], ...] = ((), ("data",), ("tensor",), ("data", "tensor"))

SMOOTH: tuple[ops.AnyAttrs, ...] = (
    ops.Neg(),
    ops.Tanh(),
    ops.Sin(),
    ops.Cos(),
    ops.Sigmoid(),
    ops.Erf(),
    ops.Cast("f32"),
    ops.Stop(),
    ops.Add(),
    ops.Sub(),
    ops.Mul(),
    ops.Maximum(),
    ops.Minimum(),
    ops.AddN(),
)


def program_of(
    *functions: Function, level: Level = "training", mesh: Mesh = ONE_DEVICE, **fields: Any
) -> Program:
    """A program over DIMS whose entry is the last function."""
    dims = fields.pop("dims", DIMS)
    sized = tuple(DimSize(name, size) for name, size in dims.items())
    entries = fields.pop("entries", (functions[-1].name,))
    return Program(level, sized, functions, entries, mesh=mesh, **fields)


def arguments_for(program: Program, seed: int, entry: str | None = None) -> dict[str, Any]:
    """Random global arrays for an entry's inputs; indices are valid ones."""
    function = program.function(entry or program.entries[0])
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {}
    for given, kind in zip(function.inputs, function.types, strict=False):
        shape = program.sizes.shape(kind)
        high = program.sizes.size(kind.index) if kind.index else 2
        draw = rng.standard_normal(shape) if kind.is_float else rng.integers(0, high, shape)
        found[given.name] = as_stored(kind, draw)
    return found


@st.composite
def types(draw: st.DrawFn, placed: bool = False, index: bool = False) -> Type:
    """A type over some dims, perhaps placed."""
    names = draw(st.permutations(NAMES))[: draw(st.integers(1, 1 if index else 3))]
    dims: list[Dim] = []
    free = {"data", "tensor"} if placed else set[str]()
    for name in names:
        axes = draw(st.sampled_from([p for p in PLACEMENTS if set(p) <= free]))
        free -= set(axes)
        dims.append(Dim(name, axes))
    if index:
        return Type("i64", tuple(dims), index=draw(st.sampled_from(NAMES)))
    return Type("f32", tuple(dims))


def candidates(draw: st.DrawFn, builder: Builder, placed: bool) -> tuple[ops.AnyAttrs, list[int]]:
    """An op and operands that may or may not fit each other."""
    values = st.integers(0, len(builder.types) - 1)
    a, b = draw(values), draw(values)
    kind, name = builder.types[a], draw(st.sampled_from(NAMES))
    names = st.sampled_from(kind.names or NAMES)
    axes = draw(st.sampled_from(PLACEMENTS)) if placed else ()
    dim = Dim(name, axes)
    shared = [n for n in kind.names if n in builder.types[b].names]
    contract = tuple(n for n in shared if draw(st.booleans()))
    index = draw(st.sampled_from([n for n, k in enumerate(builder.types) if k.index]))
    of = builder.types[index].index
    placed_of = Dim(of, axes)
    choices: list[tuple[ops.AnyAttrs, list[int]]] = [
        (ops.Dot(contract), [a, b]),
        (ops.ReduceSum((draw(names),)), [a]),
        (ops.ReduceMax((draw(names),)), [a]),
        (ops.Rename(((draw(names), name),)), [a]),
        (ops.Transpose(tuple(draw(st.permutations(kind.names)))), [a]),
        *[(ops.Take(of), [a, index]), (ops.Pick(of), [a, index])] * 2,
        *[(ops.Put(placed_of), [index, a]), (ops.Spread(placed_of), [a, index])] * 2,
        (ops.Iota(dim), []),
        (ops.Fill(draw(st.sampled_from((0.0, 0.5, -2.0))), "f32", (dim,)), []),
        (ops.Rope(draw(names), draw(names)), [a]),
    ]
    if placed:
        choices += [
            (ops.AllReduce(kind.partial), [a]),
            (ops.ReduceScatter(draw(names), kind.partial), [a]),
            (ops.AllGather(draw(names), axes), [a]),
            (ops.LocalSlice(draw(names), axes), [a]),
        ] * 2
    smooth = draw(st.sampled_from(SMOOTH))
    count = 2 if smooth.arity == -1 else smooth.arity
    choices += [(smooth, [a, b][:count])] * 4
    return draw(st.sampled_from(choices))


def well_formed(kind: Type, sizes: Sizes) -> bool:
    """Whether axes stand once, and divide the dims."""
    axes = [*kind.axes, *kind.partial]
    even = all(sizes.size(d.name) % sizes.mesh.extent(d.axes) == 0 for d in kind.dims)
    return len(set(axes)) == len(axes) and len(kind.dims) <= 5 and even


def fits(builder: Builder, attrs: ops.AnyAttrs, operands: Sequence[int]) -> bool:
    """Whether the op may stand on these operands."""
    kinds = [builder.types[number] for number in operands]
    env = ops.Env(builder.sizes, {})
    if isinstance(attrs, ops.AllReduce | ops.ReduceScatter | ops.AllGather | ops.LocalSlice):
        if not attrs.axes:
            return False
    elif any(kind.index for kind in kinds) and attrs.kind not in ("take", "pick", "put", "spread"):
        return False
    try:
        whole = attrs.whole(kinds)
        divided = any(n in k.names and k.axes_of(n) for k in kinds for n in whole)
        found = attrs.infer(kinds, env)
    except (ops.TypeRuleError, KeyError):
        return False
    return not divided and all(well_formed(kind, builder.sizes) for kind in found)


@st.composite
def programs(draw: st.DrawFn, placed: bool = False, steps: int = 12) -> Program:
    """A valid program of one entry that returns every value that is not partial."""
    mesh = MESH if placed else Mesh()
    builder = Builder("main", Sizes(DIMS, mesh))
    for number in range(3):
        builder.input(f"x{number}", draw(types(placed)), draw(st.sampled_from(("data", "value"))))
    for number in range(2):
        builder.input(f"i{number}", draw(types(placed, index=True)))
    for number in range(draw(st.integers(1, steps))):
        attrs, operands = candidates(draw, builder, placed)
        for _ in range(3):
            if not fits(builder, attrs, operands):
                attrs, operands = candidates(draw, builder, placed)
        if fits(builder, attrs, operands):
            builder.path = f"body.op_{number}" if number % 3 else ""
            builder.span = Span("a b.fllm", number, number + 2, 1, 1 + number, 1, 3 + number)
            builder.emit(attrs, *operands)
    for number, kind in list(enumerate(builder.types)):
        if kind.partial:
            builder.one(ops.AllReduce(kind.partial), number)
    resolved = [n for n, kind in enumerate(builder.types) if not kind.partial]
    function = builder.finish(resolved, [f"y{n}" for n in resolved])
    weight = Parameter("body.w", Type("bf16", (Dim("layers"), Dim("embed"))), Init("normal", 0.1))
    stacked = replace(weight, name="body.v", stack="layers", depth=1, trainable=False)
    level: Level = "sharded" if placed else "training"
    return program_of(function, level=level, mesh=mesh, parameters=(weight, stacked))


def erase(program: Program) -> Program:
    """The same program on one device: no axes, no partial values, no collectives."""
    functions = tuple(_erase(function, Sizes(program.sizes.dims)) for function in program.functions)
    return replace(program, level="training", mesh=Mesh(), functions=functions)


def _erase(function: Function, sizes: Sizes) -> Function:
    builder = Builder(function.name, sizes)
    values: dict[int, int] = {}
    for number, given in enumerate(function.inputs):
        values[number] = builder.input(given.name, function.types[number].unplaced(), given.role)
    for op in function.ops:
        operands = [values[number] for number in op.operands]
        if isinstance(op.attrs, MOVES):
            values[op.results[0]] = operands[0]
        else:
            found = builder.emit(_plain(op.attrs), *operands)
            values.update(zip(op.results, found, strict=True))
    return builder.finish([values[number] for number in function.results], function.outputs)


MOVES = (ops.AllReduce, ops.AllGather, ops.AllToAll, ops.ReduceScatter, ops.LocalSlice)
"""What changes where a value is, and not the value."""


def _plain(attrs: ops.AnyAttrs) -> ops.AnyAttrs:
    if isinstance(attrs, ops.Fill | ops.Random):
        plain = replace(attrs, dims=tuple(Dim(dim.name) for dim in attrs.dims))
        return replace(plain, partial=()) if isinstance(plain, ops.Fill) else plain
    if isinstance(attrs, ops.Iota | ops.Put | ops.Spread):
        return replace(attrs, dim=Dim(attrs.dim.name))
    return attrs
