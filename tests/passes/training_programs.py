"""A small Llama op by op, as `inline` leaves it, with its optimizer; and how to judge it."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Function, Init, Parameter, Program, Role
from fllmc.ir.types import HOST_SCALAR, Mesh, Sizes, Type, indices, tensor
from fllmc.ir.verify import verify
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context, Pass

SIZES = {
    "batch": 4,
    "seq": 3,
    "embed": 6,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 4,
    "ffn": 5,
    "vocab": 7,
    "layers": 2,
}
LAYER: Mapping[str, tuple[str, ...]] = {
    "attn_norm.scale": ("embed",),
    "attn.wq": ("embed", "heads", "head_dim"),
    "attn.wk": ("embed", "kv_heads", "head_dim"),
    "attn.wv": ("embed", "kv_heads", "head_dim"),
    "attn.wo": ("heads", "head_dim", "embed"),
    "mlp_norm.scale": ("embed",),
    "mlp.gate": ("embed", "ffn"),
    "mlp.up": ("embed", "ffn"),
    "mlp.down": ("ffn", "embed"),
}
PARAMETERS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("vocab", "embed"),
    "mixing": ("embed",),
    **{f"body.{name}": ("layers", *dims) for name, dims in LAYER.items()},
    "final_norm.scale": ("embed",),
}
"""`mixing` is shared by all layers; the head is the embedding, so that it has two uses."""

BETAS, EPS, DECAY = (0.9, 0.95), 1e-6, 0.1


def builder(name: str, *functions: Function) -> Builder:
    return Builder(name, Sizes(SIZES), {f.name: f.signature for f in functions})


def normed(b: Builder, x: int, scale: int) -> int:
    """Root mean square normalisation, in at least f32, times a scale."""
    narrow = b.types[x].dtype
    wide = b.cast(x, "f64" if narrow == "f64" else "f32")
    mean = b.mul(b.sum(b.mul(wide, wide), ("embed",)), b.constant(1 / SIZES["embed"]))
    sharp = b.mul(wide, b.rsqrt(b.add(mean, b.constant(1e-5))))
    return b.cast(b.mul(sharp, b.cast(scale, b.types[wide].dtype)), narrow)


def layer(params: str, compute: str) -> Function:
    """(x, weights, mixing) -> (y, the mean square of the branch), two dims of carry and stack."""
    b = builder("layer")
    x = b.input("x", tensor(compute, "batch", "seq", "embed"))
    w = {n: b.input(n, tensor(params, *dims), "param") for n, dims in LAYER.items()}
    mixing = b.input("mixing", tensor(params, "embed"))

    def apply(value: int, name: str, *over: str) -> int:
        b.path = name
        return b.one(ops.Dot(over), value, b.cast(w[name], compute))

    b.path = "attn_norm"
    n = normed(b, x, w["attn_norm.scale"])
    q, k, v = (apply(n, f"attn.{name}", "embed") for name in ("wq", "wk", "wv"))
    b.path = "attn.rope"
    q, k = (b.one(ops.Rope("seq", "head_dim"), value) for value in (q, k))
    b.path = "attn.attend"
    out, _ = b.emit(ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.5), q, k, v)
    h = b.add(x, apply(out, "attn.wo", "heads", "head_dim"))
    b.path = "mlp_norm"
    n = normed(b, b.mul(h, b.cast(mixing, compute)), w["mlp_norm.scale"])
    gate, up = apply(n, "mlp.gate", "embed"), apply(n, "mlp.up", "embed")
    b.path = "mlp.swiglu"
    act = b.mul(b.mul(gate, b.one(ops.Sigmoid(), gate)), up)
    y = b.add(h, apply(act, "mlp.down", "ffn"))
    return b.finish([y], ["out"])


def model(params: str, compute: str, body: Function) -> Function:
    """Tokens to logits, through a stack."""
    b = builder("model", body)
    w = {n: b.input(n, tensor(params, *dims), "param") for n, dims in PARAMETERS.items()}
    tokens = b.input("tokens", indices("vocab", "batch", "seq"), "data")
    b.path = "embedding"
    table = b.cast(w["embedding"], compute)
    x = b.one(ops.Take("vocab"), table, tokens)
    b.path = "body"
    stacked = [w[f"body.{name}"] for name in LAYER]
    (x,) = b.emit(ops.Scan("layer", "layers", 1, len(stacked)), x, *stacked, w["mixing"])
    b.path = "final_norm"
    x = normed(b, x, w["final_norm.scale"])
    b.path = "embedding"
    return b.finish([b.one(ops.Dot(("embed",)), x, table)], ["out"])


def adamw(name: str, decay: float) -> Function:
    b = builder(name)
    roles: dict[str, Role] = dict.fromkeys(("param", "grad", "m", "v"), "value")
    roles |= {"rate": "host", "step": "host"}
    given = {n: b.input(n, HOST_SCALAR, role) for n, role in roles.items()}
    grad, step, one = given["grad"], given["step"], b.constant(1.0)
    m = mixed(b, BETAS[0], given["m"], grad)
    v = mixed(b, BETAS[1], given["v"], b.mul(grad, grad))
    mean, variance = (
        b.div(x, b.sub(one, b.one(ops.Pow(), b.constant(beta), step)))
        for x, beta in zip((m, v), BETAS, strict=True)
    )
    way = b.div(mean, b.add(b.one(ops.Sqrt(), variance), b.constant(EPS)))
    if decay:
        way = b.add(way, b.mul(b.constant(decay), given["param"]))
    new = b.sub(given["param"], b.mul(given["rate"], way))
    return b.finish([new, m, v], ["param", "m", "v"])


def mixed(b: Builder, beta: float, old: int, new: int) -> int:
    return b.add(b.mul(b.constant(beta), old), b.mul(b.constant(1 - beta), new))


def equations() -> tuple[Function, ...]:
    """AdamW with and without decay, its first states, and a rate of 0.01 step / steps."""
    states = builder("optimizer.states")
    zeros = [states.constant(0.0), states.constant(0.0)]
    rate = builder("rate")
    step, steps = (rate.input(n, HOST_SCALAR, "host") for n in ("step", "steps"))
    value = rate.mul(rate.constant(0.01), rate.div(step, steps))
    return (
        adamw("optimizer", DECAY),
        adamw("optimizer.no_decay", 0.0),
        states.finish(zeros, ["m", "v"]),
        rate.finish([value], ["rate"]),
    )


def llama(
    params: str = "f64", compute: str = "f64", frozen: Sequence[str] = (), **extra: Any
) -> Program:
    """The model-level program. Parameters whose name holds one of `frozen` do not train."""
    body = layer(params, compute)
    functions = (body, model(params, compute, body), *equations())
    dims = tuple(DimSize(name, size) for name, size in SIZES.items())
    parameters = tuple(
        Parameter(
            name,
            tensor(params, *dims),
            Init("normal", 0.3),
            trainable=not any(part in name for part in frozen),
            stack="layers" if name.startswith("body.") else "",
            depth=int(name.startswith("body.")),
            decays=not name.endswith(".scale"),
        )
        for name, dims in PARAMETERS.items()
    )
    return replace(Program("model", dims, functions, ("model",), parameters), **extra)


def run(program: Program, *passes: Pass) -> Program:
    """The program after the passes, verified after each."""
    verify(program)
    for step in passes:
        program = step.run(program, Context(Mesh(), lambda found: None))
        verify(program)
    return program


def arguments(program: Program, entry: str, seed: int = 0) -> dict[str, Any]:
    """Arguments for an entry; the same name and shape is given the same numbers."""
    function = program.function(entry)
    found: dict[str, Any] = {}
    for given, kind in zip(function.inputs, function.types, strict=False):
        found[given.name] = drawn(given.name, kind, program.sizes, seed)
    return found


def drawn(name: str, kind: Type, sizes: Sizes, seed: int) -> Any:
    rng = np.random.default_rng([seed, *name.encode()])
    shape = sizes.shape(kind)
    if kind.index:
        return rng.integers(0, sizes.size(kind.index), shape)
    if name == "weights":
        return rng.random(shape) * (rng.random(shape) < 0.8)
    return rng.normal(0, 0.5, shape) + (1.0 if name.endswith("scale") else 0.0)


def loss_of(program: Program, given: Mapping[str, Any]) -> Any:
    """The loss and the count by the evaluator."""
    forward = run(program, ApplyLoss()) if program.level == "model" else program
    return evaluate(forward, "forward", given)


@contextmanager
def wide_jax() -> Iterator[Any]:
    """JAX with 64-bit values."""
    jax: Any = importlib.import_module("jax")

    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield jax
    finally:
        jax.config.update("jax_enable_x64", before)


def jax_gradients(program: Program, given: Mapping[str, Any], names: Sequence[str]) -> Any:
    """jax.grad of `forward`'s loss to the named inputs."""
    with wide_jax() as jax:
        from fllmc.codegen.jax_target import jax_function

        forward = jax_function(program, "forward")

        def loss(held: dict[str, Any]) -> Any:
            return forward({**given, **held})["loss"]

        found = jax.jit(jax.grad(loss))({name: given[name] for name in names})
        return {name: np.asarray(value) for name, value in found.items()}


def relative(found: Any, expected: Any) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float(np.linalg.norm(found - expected) / max(np.linalg.norm(expected), 1e-300))
