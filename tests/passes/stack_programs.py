"""Small programs for tests of passes: a stack run forward, and one run forward and back."""

from typing import Any

import numpy as np

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Call, Dot, Fill, Scan, Sigmoid, Take
from fllmc.ir.program import DimSize, Function, Init, Parameter, Program
from fllmc.ir.types import HOST_SCALAR, Mesh, Sizes, Type, indices, tensor
from fllmc.ir.verify import verify
from fllmc.passes.base import Context, Pass

SIZES = {"layers": 3, "batch": 2, "seq": 4, "embed": 6, "ffn": 8, "vocab": 5}
DIMS = tuple(DimSize(name, size) for name, size in SIZES.items())
X = tensor("f32", "batch", "seq", "embed")


def context(said: list[Diagnostic] | None = None) -> Context:
    return Context(Mesh(), [].append if said is None else said.append)


def builder(name: str, *functions: Function) -> Builder:
    return Builder(name, Sizes(SIZES), {f.name: f.signature for f in functions})


def random_arguments(program: Program, entry: str, seed: int = 0) -> dict[str, Any]:
    """Arguments for an entry: normal numbers, indices within their dims."""
    rng = np.random.default_rng(seed)
    function = program.function(entry)
    found: dict[str, Any] = {}
    for given, kind in zip(function.inputs, function.types, strict=False):
        shape = program.sizes.shape(kind)
        if kind.dtype == "i64":
            bound = program.sizes.size(kind.index) if kind.index else 100
            found[given.name] = rng.integers(0, bound, size=shape)
        else:
            found[given.name] = rng.normal(size=shape)
    return found


def results(program: Program, entry: str) -> dict[str, Any]:
    return evaluate(program, entry, random_arguments(program, entry))


def equal(a: Program, b: Program, entry: str) -> None:
    """Both give the very same numbers for arguments that the first takes."""
    arguments = random_arguments(a, entry)
    names = {given.name for given in b.function(entry).inputs}
    first = evaluate(a, entry, arguments)
    second = evaluate(b, entry, {n: v for n, v in arguments.items() if n in names})
    assert list(first) == list(second)
    for name, value in first.items():
        assert np.array_equal(value, second[name]), name


def applied(step: Pass, program: Program, said: list[Diagnostic] | None = None) -> Program:
    """What the pass gives, verified."""
    verify(program)
    after = step.run(program, context(said))
    verify(after)
    assert step.run(program, context()) == after
    return after


def model_program() -> Program:
    """An embedding, a stack of `layer`s with a gated map, and a head; with calls and extras."""
    silu = builder("silu")
    v = silu.input("x", tensor("f32", "batch", "seq", "ffn"))
    silu.path = "gate"
    f_silu = silu.finish([silu.mul(v, silu.one(Sigmoid(), v))], ["out"])

    mlp = builder("mlp", f_silu)
    x = mlp.input("x", X)
    up = mlp.input("up", tensor("f32", "embed", "ffn"), "param")
    down = mlp.input("down", tensor("f32", "ffn", "embed"), "param")
    mlp.path = "up"
    wide = mlp.one(Dot(("embed",)), x, up)
    mlp.path = "silu"
    wide = mlp.one(Call("silu"), wide)
    mlp.path = "down"
    f_mlp = mlp.finish([mlp.one(Dot(("ffn",)), wide, down)], ["out"])

    layer = builder("layer", f_mlp)
    x = layer.input("x", X)
    up = layer.input("mlp.up", tensor("f32", "embed", "ffn"), "param")
    down = layer.input("mlp.down", tensor("f32", "ffn", "embed"), "param")
    scale = layer.input("norm.scale", tensor("f32", "embed"), "param")
    layer.path = "norm"
    normed = layer.mul(x, scale)
    layer.path = "mlp"
    f_layer = layer.finish([layer.add(x, layer.one(Call("mlp"), normed, up, down))], ["out"])

    top = builder("model", f_layer)
    table = top.input("embedding", tensor("f32", "vocab", "embed"), "param")
    up = top.input("body.mlp.up", tensor("f32", "layers", "embed", "ffn"), "param")
    down = top.input("body.mlp.down", tensor("f32", "layers", "ffn", "embed"), "param")
    scale = top.input("body.norm.scale", tensor("f32", "layers", "embed"), "param")
    tokens = top.input("tokens", indices("vocab", "batch", "seq"), "data")
    top.path = "embedding"
    h = top.one(Take("vocab"), table, tokens)
    top.path = "body"
    h = top.one(Scan("layer", "layers", 1, 3), h, up, down, scale)
    top.path = "embedding"
    f_top = top.finish([top.one(Dot(("embed",)), h, table)], ["out"])

    rate = builder("rate")
    step = rate.input("step", HOST_SCALAR, "host")
    f_rate = rate.finish([rate.mul(step, rate.constant(0.5))], ["rate"])
    lone = builder("lone")
    f_lone = lone.finish([lone.constant(1.0)], ["out"])
    functions = (f_silu, f_mlp, f_layer, f_top, f_rate, f_lone)
    return Program("model", DIMS, functions, ("model",), parameters(f_top))


def parameters(function: Function) -> tuple[Parameter, ...]:
    """A parameter for each param input."""
    pairs = zip(function.inputs, function.types, strict=False)
    return tuple(parameter(g.name, kind) for g, kind in pairs if g.role == "param")


def parameter(name: str, kind: Type) -> Parameter:
    stacked = kind.names[0] == "layers"
    return Parameter(name, kind, Init("normal", 0.1), True, "layers" * stacked, int(stacked))


def training_program() -> Program:
    """A stack with y = x + down(silu(up(x * scale))), run forward, and back for d_x and d_up.

    Everything that the backward body wants is stacked by the forward one: six residuals.
    """
    forward, backward = forward_layer(), backward_layer()
    top = builder("step", forward, backward)
    first = top.input("x", X, "data")
    table = top.input("shift", tensor("f32", "embed"), "param")
    up = top.input("body.up", tensor("f32", "layers", "embed", "ffn"), "param")
    down = top.input("body.down", tensor("f32", "layers", "ffn", "embed"), "param")
    top.path = "shift"
    x = top.add(first, table)
    top.path = "body"
    made = top.emit(Scan(forward.name, "layers", 1, 2), x, up, down)
    top.path = ""
    back = Scan(backward.name, "layers", 1, 6, reverse=True)
    d_x, d_up = top.emit(back, made[0], *made[1:5], up, down)
    entry = top.finish([made[0], d_x, d_up, top.mul(x, d_x)], ["out", "d_x", "d_up", "d_shift"])
    functions = (forward, backward, entry)
    return Program("training", DIMS, functions, ("step",), parameters(entry))


def forward_layer() -> Function:
    b = builder("layer")
    x = b.input("x", X)
    up = b.input("up", tensor("f32", "embed", "ffn"), "param")
    down = b.input("down", tensor("f32", "ffn", "embed"), "param")
    b.path = "norm"
    n = b.mul(x, b.one(Sigmoid(), x))
    b.path = "mlp.up"
    u = b.one(Dot(("embed",)), n, up)
    b.path = "mlp.silu"
    s = b.one(Sigmoid(), u)
    h = b.mul(u, s)
    b.path = "mlp.down"
    y = b.one(Dot(("ffn",)), h, down)
    b.path = ""
    return b.finish([b.add(x, y), n, u, s, h], ["out", "n", "u", "s", "h"])


def backward_layer() -> Function:
    """Not the true gradient, but one that takes and uses all that one would."""
    b = builder("layer.grad")
    d_y = b.input("d_out", X)
    n = b.input("n", X)
    wide = tensor("f32", "batch", "seq", "ffn")
    u, s, h = (b.input(name, wide) for name in ("u", "s", "h"))
    up = b.input("up", tensor("f32", "embed", "ffn"), "param")
    down = b.input("down", tensor("f32", "ffn", "embed"), "param")
    d_h = b.one(Dot(("embed",)), d_y, down)
    d_u = b.add(b.mul(d_h, s), b.mul(b.mul(d_h, h), b.mul(u, s)))
    d_up = b.one(Dot(("batch", "seq")), n, d_u)
    d_n = b.one(Dot(("ffn",)), d_u, up)
    return b.finish([b.add(d_y, d_n), d_up], ["d_x", "d_up"])


def zeros(b: Builder, kind: Type) -> int:
    return b.one(Fill(0.0, kind.dtype, kind.dims))
