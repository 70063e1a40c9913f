"""JAX as an oracle: the same programs, run by rules that share nothing with the evaluator's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Dim, Sizes, Type, indices, tensor
from tests.ir.programs import DIMS, MESH, arguments_for, program_of, programs

jax = pytest.importorskip("jax")

from fllmc.codegen.jax_target import jax_function  # noqa: E402

SIZES = {"batch": 2, "seq": 4, "embed": 6, "vocab": 7, "heads": 4, "kv_heads": 2, "head_dim": 6}
SIZES["layers"] = 3


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """64-bit values, for these tests only."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def model() -> Program:
    """A small decoder's loss: lookup, three layers of grouped attention, dropout, cross entropy."""
    sizes = Sizes(SIZES)
    hidden = tensor("f32", "batch", "seq", "embed")
    b = Builder("layer", sizes)
    x = b.input("x", hidden)
    layer = b.input("layer", indices("layers"))
    wq = b.input("wq", tensor("f32", "embed", "heads", "head_dim"))
    wk = b.input("wk", tensor("f32", "embed", "kv_heads", "head_dim"))
    wo = b.input("wo", tensor("f32", "heads", "head_dim", "embed'"))
    seed = b.input("seed", Type("f64"))
    q = b.one(ops.Rope("seq", "head_dim"), b.one(ops.Dot(("embed",)), x, wq))
    k = b.one(ops.Dot(("embed",)), x, wk)
    turned = b.one(ops.Rope("seq", "head_dim", layout="interleaved"), k)
    attend = ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.4)
    out, lse = b.emit(attend, q, turned, k)
    out = b.mul(out, b.one(ops.Sigmoid(), lse))
    back = b.rename(b.one(ops.Dot(("heads", "head_dim")), out, wo), {"embed'": "embed"})
    samples = b.one(ops.Iota(Dim("batch")))
    bits = b.one(ops.Random(2, hidden.dims), seed, samples, layer)
    kept = b.one(ops.Less(), bits, b.constant(0.8))
    dropped = b.one(ops.Where(), kept, back, b.constant(0.0))
    body = b.finish([b.add(x, dropped), b.sum(b.mul(back, back), ["embed"])], ["x", "norms"])

    m = Builder("forward", sizes, {"layer": body.signature})
    tokens = m.input("tokens", indices("vocab", "batch", "seq"), "data")
    table = m.input("table", tensor("f32", "vocab", "embed"), "param")
    weights = [
        m.input(given.name, Type("f32", (Dim("layers"), *body.types[n].dims)), "param")
        for n, given in enumerate(body.inputs)
        if given.name.startswith("w")
    ]
    start = m.one(ops.Take("vocab"), table, tokens)
    layers = m.one(ops.Iota(Dim("layers")))
    scan = ops.Scan("layer", "layers", 1, 4)
    end, norms = m.emit(scan, start, layers, *weights, m.constant(11))
    logits = m.one(ops.Dot(("embed",)), end, table)
    top = m.one(ops.Stop(), m.one(ops.ReduceMax(("vocab",)), logits))
    total = m.sum(m.exp(m.sub(logits, top)), ["vocab"])
    lse = m.add(m.one(ops.Log(), total), top)
    nll = m.sub(lse, m.one(ops.Pick("vocab"), logits, tokens))
    loss = m.add(m.sum(nll, ["batch", "seq"]), m.sum(norms, ["layers", "batch", "seq"]))
    return program_of(body, m.finish([loss], ["loss"]), dims=SIZES)


def same(program: Program, arguments: dict[str, Any]) -> None:
    entry = program.entries[0]
    ours = evaluate(program, entry, arguments)
    theirs = jax_function(program, entry)(arguments)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        found = np.asarray(theirs[name])
        assert found.dtype == value.dtype and found.shape == value.shape
        np.testing.assert_allclose(found, value, rtol=1e-9, atol=1e-9, err_msg=name)


@given(programs(steps=8))
@settings(max_examples=25)
def test_random_programs_run_alike(program: Program) -> None:
    same(program, arguments_for(program, 2))


def test_a_model_runs_alike() -> None:
    program = model()
    same(program, arguments_for(program, 4))


def test_the_gradient_is_the_slope_of_the_evaluator() -> None:
    program = model()
    arguments = arguments_for(program, 4)
    weights = [name for name in arguments if name != "tokens"]
    run = jax_function(program, "forward")

    def loss(held: dict[str, Any]) -> Any:
        return run({**held, "tokens": arguments["tokens"]})["loss"]

    gradients = jax.jit(jax.grad(loss))({name: arguments[name] for name in weights})
    for name in weights:
        way = np.random.default_rng(0).standard_normal(arguments[name].shape)
        low, high = (
            evaluate(program, "forward", {**arguments, name: arguments[name] + step * way})["loss"]
            for step in (-1e-6, 1e-6)
        )
        slope = float((np.asarray(gradients[name]) * way).sum())
        np.testing.assert_allclose((high - low) / 2e-6, slope, rtol=1e-6, err_msg=name)


def test_stated_dtypes_are_kept_when_asked() -> None:
    b = Builder("main", Sizes(DIMS))
    x = b.input("x", tensor("f32", "embed"))
    half = b.mul(b.cast(x, "bf16"), b.constant(1 / 3))
    program = program_of(b.finish([half, b.cast(half, "f32")], ["half", "y"]))
    found = jax_function(program, "main", exact=False)({"x": np.ones(4)})
    assert found["half"].dtype == "bfloat16"
    assert found["y"].dtype == "float32"
    assert float(found["y"][0]) == 0.333984375


def test_placed_programs_are_refused() -> None:
    b = Builder("main", Sizes(DIMS, MESH))
    x = b.input("x", Type("f32", (Dim("batch", ("data",)),)))
    program = program_of(b.finish([b.neg(x)], ["y"]), level="sharded", mesh=MESH)
    with pytest.raises(InternalError, match="placed"):
        jax_function(program, "main")({"x": np.ones(4)})
