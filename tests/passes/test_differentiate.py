"""Gradients against jax.grad, op by op, over random programs, through scans, and of a Llama."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Function, Init, Op, Parameter, Program
from fllmc.ir.settings import Lora
from fllmc.ir.types import Dim, Sizes, Type, indices, tensor
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.gradients import GRADIENTS
from tests.ir.programs import DIMS, arguments_for, programs
from tests.passes.training_programs import (
    PARAMETERS,
    arguments,
    jax_gradients,
    llama,
    relative,
    run,
)

pytest.importorskip("jax")

NEVER = {
    **dict.fromkeys((*ops.COLLECTIVES, ops.LocalSlice, ops.Pipeline, ops.Share), "placed"),
    **dict.fromkeys((ops.DotAdd, ops.MulAdd, ops.MulSub, ops.PutAdd), "made with the plan"),
    **dict.fromkeys((ops.Bucketed, ops.Fused), "made with the plan"),
    **dict.fromkeys((ops.AttendGrad, ops.SiluGrad), "made by differentiating"),
    **dict.fromkeys((ops.ConvInput, ops.ConvWeight, ops.RecurGrad), "made by differentiating"),
    ops.Call: "inlined before",
    **dict.fromkeys((ops.FromHost, ops.ToHost, ops.Wait), "made behind placement"),
    ops.Scan: "in passes/reverse.py",
}
SMALL = {"batch": 3, "seq": 4, "embed": 2, "layers": 3, "outer": 2}


def test_every_op_has_a_gradient() -> None:
    assert set(GRADIENTS) | set(NEVER) == set(ops.OPS.values())
    assert not set(GRADIENTS) & set(NEVER)


def forward_program(
    *functions: Function, sizes: dict[str, int] | None = None, frozen: Sequence[str] = ()
) -> Program:
    """A program around `forward`, the last function, whose param inputs train but for `frozen`."""
    dims = tuple(DimSize(name, size) for name, size in (sizes or SMALL).items())
    forward = functions[-1]
    pairs = zip(forward.inputs, forward.types, strict=False)
    parameters = tuple(
        Parameter(g.name, kind, Init("zeros"), trainable=g.name not in frozen)
        for g, kind in pairs
        if g.role == "param"
    )
    return Program("training", dims, functions, ("forward",), parameters)


def check(program: Program, given: dict[str, Any], tolerance: float = 1e-10) -> Program:
    """Differentiate, and hold all gradients against jax.grad."""
    after = run(program, Differentiate())
    names = [p.name for p in program.parameters if p.trainable]
    seed = after.function("gradient").inputs[-1].name
    found = evaluate(after, "gradient", {**given, seed: np.asarray(1.5)})
    before = evaluate(program, "forward", given)
    assert list(found) == [*before, *(f"grad.{name}" for name in names)]
    np.testing.assert_array_equal(found["loss"], before["loss"])
    for name, expected in jax_gradients(program, given, names).items():
        np.testing.assert_allclose(
            found[f"grad.{name}"],
            1.5 * expected,
            rtol=tolerance,
            atol=tolerance * max(1.0, float(np.abs(expected).max(initial=0.0))),
            err_msg=name,
        )
    return after


def finished(b: Builder, *values: int) -> Function:
    """`forward` with a loss to which each element contributes otherwise."""
    terms: list[int] = []
    for number, value in enumerate(values):
        curved = b.one(ops.Sin(), b.add(value, b.constant(0.3 + number)))
        terms.append(b.sum(b.mul(curved, b.add(value, b.constant(1.0))), b.types[value].names))
    loss = terms[0] if len(terms) == 1 else b.one(ops.AddN(), *terms)
    return b.finish([loss], ["loss"])


# Single ops.

UNARY: tuple[ops.AnyAttrs, ...] = (
    *(ops.Neg(), ops.Exp(), ops.Log(), ops.Sqrt(), ops.Rsqrt(), ops.Sigmoid(), ops.Tanh()),
    *(ops.Erf(), ops.Sin(), ops.Cos(), ops.Cast("f64"), ops.Stop()),
    *(ops.ReduceSum(("seq",)), ops.ReduceMax(("seq",)), ops.ReduceMax(("batch", "embed"))),
    ops.Transpose(("embed", "batch", "seq")),
    ops.Rename((("embed", "outer"),)),
    *(ops.Rope("batch", "embed"), ops.Rope("batch", "seq", layout="interleaved", inverse=True)),
)
BINARY: tuple[ops.AnyAttrs, ...] = (
    *(ops.Add(), ops.Sub(), ops.Mul(), ops.Div(), ops.Pow(), ops.Maximum(), ops.Minimum()),
    *(ops.AddN(), ops.Dot(("batch", "embed")), ops.Dot(("embed",)), ops.Dot(())),
)
SHAPES = (("batch", "seq", "embed"), ("embed", "batch"))


def positive(program: Program) -> dict[str, Any]:
    """Arguments above zero, so that roots and logarithms have them."""
    found = arguments(program, "forward")
    return {n: abs(v) + 0.2 if v.dtype == np.float64 else v for n, v in found.items()}


@pytest.mark.parametrize("attrs", UNARY, ids=lambda attrs: attrs.kind)
def test_op_of_one(attrs: ops.AnyAttrs) -> None:
    b = Builder("forward", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch", "seq", "embed"), "param")
    y = b.one(attrs, x)
    program = forward_program(finished(b, b.mul(y, y), x))
    check(program, positive(program))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("attrs", BINARY, ids=lambda attrs: attrs.kind)
def test_op_of_two(attrs: ops.AnyAttrs, turned: bool) -> None:
    shapes = SHAPES[::-1] if turned else SHAPES
    b = Builder("forward", Sizes(SMALL))
    pair = [b.input(f"x{n}", tensor("f64", *dims), "param") for n, dims in enumerate(shapes)]
    program = forward_program(finished(b, b.one(attrs, *pair)))
    check(program, positive(program))
    check(replace(program, parameters=(program.parameters[1],)), positive(program))


@pytest.mark.parametrize("attrs", [ops.Mul(), ops.Add(), ops.Div(), ops.Dot(("embed",))])
def test_op_of_a_value_with_itself(attrs: ops.AnyAttrs) -> None:
    b = Builder("forward", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch", "embed"), "param")
    program = forward_program(finished(b, b.one(attrs, x, x)))
    check(program, positive(program))


@pytest.mark.parametrize("narrow", [False, True])
def test_where(narrow: bool) -> None:
    b = Builder("forward", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch", "seq"), "param")
    y = b.input("y", tensor("f64", *(("seq",) if narrow else ("batch", "seq"))), "param")
    chosen = b.one(ops.Where(), b.one(ops.Less(), x, y), x, b.mul(y, y))
    program = forward_program(finished(b, chosen))
    check(program, arguments(program, "forward"))


def test_index_ops() -> None:
    b = Builder("forward", Sizes(SMALL))
    table = b.input("table", tensor("f64", "embed", "seq", "outer"), "param")
    index = b.input("index", indices("seq", "batch"), "data")
    taken = b.one(ops.Take("seq"), table, index)
    other = b.input("other", tensor("f64", "seq", "embed", "batch"), "param")
    picked = b.one(ops.Pick("seq"), other, index)
    spread = b.one(ops.Spread(Dim("seq")), picked, index)
    put = b.one(ops.Put(Dim("seq")), index, b.mul(taken, picked))
    plain = b.sum(b.one(ops.Pick("seq"), other, index), ("batch", "embed"))
    program = forward_program(finished(b, taken, spread, put, plain))
    check(program, arguments(program, "forward"))


def test_cotangents_that_are_equal_along_a_dim() -> None:
    """Sums pass narrow cotangents on; each op that they reach must make do with them."""
    b = Builder("forward", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch", "seq"), "param")
    y = b.input("y", tensor("f64", "seq", "embed"), "param")
    bias = b.input("bias", tensor("f64", "embed"), "param")
    table = b.input("table", tensor("f64", "seq", "embed"), "param")
    index = b.input("index", indices("seq", "batch"), "data")
    q = b.input("q", tensor("f64", "batch", "seq", "layers", "embed"), "param")
    kinds = [
        b.sum(b.one(ops.Dot(("seq",)), x, y), ("batch", "embed")),
        b.sum(b.add(b.one(ops.Dot(("seq",)), x, y), bias), ("batch",)),
        b.sum(b.one(ops.Take("seq"), table, index), ("batch", "embed")),
        b.sum(b.one(ops.Pick("seq"), x, index), ("batch",)),
        b.sum(b.one(ops.Rope("seq", "embed"), q), ("batch", "seq", "layers", "embed")),
        b.sum(b.emit(ops.Attend("seq", "layers", "layers", "embed", 1.0), q, q, q)[0], ("embed",)),
        b.sum(b.one(ops.Transpose(("seq", "batch")), x), ("seq",)),
        b.sum(b.one(ops.Rename((("seq", "seq'"),)), y), ("seq'",)),
    ]
    program = forward_program(finished(b, *kinds))
    check(program, arguments(program, "forward"))


def test_the_log_sum_exp_of_attention_has_no_gradient() -> None:
    b = Builder("forward", Sizes(SMALL))
    q = b.input("q", tensor("f64", "batch", "seq", "layers", "embed"), "param")
    out, lse = b.emit(ops.Attend("seq", "layers", "layers", "embed", 1.0), q, q, q)
    with pytest.raises(InternalError, match="log-sum-exp"):
        run(forward_program(finished(b, out, lse)), Differentiate())


def test_a_parameter_without_use_has_a_zero_gradient() -> None:
    b = Builder("forward", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch"), "param")
    b.input("unused", tensor("f64", "batch", "seq"), "param")
    b.input("scalar", tensor("f64"), "param")
    program = forward_program(finished(b, x))
    check(program, arguments(program, "forward"))


# Random programs.


def as_loss(program: Program, frozen: Sequence[str] = ()) -> Program:
    """A random program as one to differentiate: float inputs are parameters, results a loss.

    Maximum and minimum become sums: where operands are equal, their gradient is a convention.
    """
    main = program.function(program.entries[0])
    smooth = {ops.Maximum: ops.Add(), ops.Minimum: ops.Sub()}
    body = tuple(replace(op, attrs=smooth.get(type(op.attrs), op.attrs)) for op in main.ops)
    b = Builder("forward", Sizes(DIMS))
    operands = [
        b.input(given.name, kind, "param" if kind.is_float else "data")
        for given, kind in zip(main.inputs, main.types, strict=False)
    ]
    values = b.copy(replace(main, ops=body), operands)
    floats = [value for value in values if b.types[value].is_float]
    narrow = [b.mul(v, b.constant(0.1)) for v in floats]
    return forward_program(finished(b, *narrow), sizes=dict(DIMS), frozen=frozen)


@given(programs(steps=8), st.sets(st.sampled_from(["x0", "x1", "x2"]), max_size=2))
@settings(
    max_examples=25, suppress_health_check=(HealthCheck.too_slow, HealthCheck.filter_too_much)
)
def test_random_programs(program: Program, frozen: set[str]) -> None:
    whole = as_loss(program, sorted(frozen))
    if not any(parameter.trainable for parameter in whole.parameters):
        return
    check(whole, arguments_for(whole, 1), 1e-9)


# Scans.


def scan_body(name: str = "body") -> Function:
    """Carries (a trained, counter not), slices (weight, data), shared; two stacked results."""
    b = Builder(name, Sizes(SMALL))
    a = b.input("a", tensor("f64", "batch", "embed"))
    counter = b.input("counter", tensor("f64", "batch"))
    echo = b.input("echo", tensor("f64", "embed"))
    weight = b.input("weight", tensor("f64", "embed", "embed'"))
    noise = b.input("noise", tensor("f64", "batch"))
    shared = b.input("shared", tensor("f64", "embed"))
    mixed = b.rename(b.one(ops.Dot(("embed",)), a, weight), {"embed'": "embed"})
    new = b.add(b.one(ops.Tanh(), b.mul(mixed, shared)), b.mul(a, counter))
    stacked = b.mul(b.sum(new, ("batch",)), echo)
    more = b.add(counter, b.mul(noise, b.constant(0.1)))
    results = [new, more, b.sum(a, ("batch",)), stacked, new, more]
    return b.finish(results, ["a", "counter", "echo", "stacked", "again", "counted"])


@pytest.mark.parametrize("frozen", [(), ("start",), ("shared", "start"), ("weight",)])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("use", ["carries", "stacked", "all", "twice"])
def test_scans(frozen: tuple[str, ...], reverse: bool, use: str) -> None:
    body = scan_body()
    b = Builder("forward", Sizes(SMALL), {"body": body.signature})
    a = b.input("start", tensor("f64", "batch", "embed"), "param")
    echo = b.input("echo", tensor("f64", "embed"), "param")
    weight = b.input("weight", tensor("f64", "layers", "embed", "embed'"), "param")
    shared = b.input("shared", tensor("f64", "embed"), "param")
    counter = b.input("counter", tensor("f64", "batch"), "data")
    noise = b.input("noise", tensor("f64", "layers", "batch"), "data")
    scan = ops.Scan("body", "layers", 3, 2, reverse)
    made = b.emit(scan, a, counter, echo, weight, noise, shared)
    if use == "twice":
        made = b.emit(scan, *made[:3], weight, noise, b.mul(shared, shared))
    used = {"carries": made[:1], "stacked": made[3:5]}.get(use, made)
    program = forward_program(body, finished(b, *used), frozen=frozen)
    after = check(program, arguments(program, "forward"))
    if use != "twice" and "weight" in frozen:
        assert all("grad.weight" not in f.outputs for f in after.functions)


def test_a_scan_within_a_scan() -> None:
    sizes = Sizes(SMALL)
    b = Builder("inner", sizes)
    x = b.input("x", tensor("f64", "batch"))
    w, scale = b.input("w", tensor("f64", "batch")), b.input("scale", tensor("f64"))
    inner = b.finish([b.one(ops.Sin(), b.mul(b.mul(x, w), scale))], ["x"])
    b = Builder("outer", sizes, {"inner": inner.signature})
    x = b.input("x", tensor("f64", "batch"))
    w, scale = b.input("w", tensor("f64", "layers", "batch")), b.input("scale", tensor("f64"))
    (y,) = b.emit(ops.Scan("inner", "layers", 1, 1), b.mul(x, x), w, scale)
    outer = b.finish([b.add(x, y), b.mul(y, y)], ["x", "y"])
    b = Builder("forward", sizes, {"inner": inner.signature, "outer": outer.signature})
    x = b.input("x", tensor("f64", "batch"), "param")
    w = b.input("w", tensor("f64", "outer", "layers", "batch"), "param")
    scale = b.input("scale", tensor("f64"), "param")
    made = b.emit(ops.Scan("outer", "outer", 1, 1), x, w, scale)
    program = forward_program(inner, outer, finished(b, *made))
    check(program, arguments(program, "forward"))


def test_host_scalars_and_constants_are_not_stacked() -> None:
    b = Builder("body", Sizes(SMALL))
    x = b.input("x", tensor("f64", "batch"))
    w = b.input("w", tensor("f64", "batch"))
    heat = b.input("heat", Type("f64"), "host")
    body = b.finish([b.mul(b.mul(b.mul(x, w), b.mul(heat, b.constant(3.0))), w)], ["x"])
    b = Builder("forward", Sizes(SMALL), {"body": body.signature})
    x = b.input("x", tensor("f64", "batch"), "param")
    w = b.input("w", tensor("f64", "layers", "batch"), "param")
    heat = b.input("heat", Type("f64"), "host")
    (y,) = b.emit(ops.Scan("body", "layers", 1, 1), x, w, heat)
    program = forward_program(body, finished(b, y))
    after = check(program, arguments(program, "forward"))
    assert all(kind.dims for kind in after.function("body.forward").signature.results)
    (host,) = [i for i in after.function("body.backward").inputs if i.role == "host"]
    assert host.name == "heat"


# A Llama.


def test_a_llama() -> None:
    program = run(llama(), ApplyLoss(z_loss=1e-2))
    given = arguments(program, "forward")
    after = run(program, Differentiate())
    found = evaluate(after, "gradient", {**given, "seed": np.asarray(1.0)})
    expected = jax_gradients(program, given, list(PARAMETERS))
    for name, value in expected.items():
        assert relative(found[f"grad.{name}"], value) < 1e-10, name


@pytest.mark.parametrize("compute", ["f32", "bf16"])
def test_gradients_have_the_dtype_and_layout_of_parameters(compute: str) -> None:
    program = run(llama("f32", compute), ApplyLoss(), Differentiate())
    gradient = program.function("gradient")
    kinds = dict(zip(gradient.outputs, gradient.signature.results, strict=True))
    for parameter in program.parameters:
        assert kinds[f"grad.{parameter.name}"] == parameter.type


def test_dropout_draws_the_same_numbers_again() -> None:
    adapter = ApplyAdapter(freeze=("*",), lora=(Lora("body.*.attn.wq", 2, 4.0, 0.5),))
    program = run(llama(), adapter, ApplyLoss())
    given = arguments(program, "forward")
    given |= {"seed": np.asarray(7.0), "samples": np.arange(4)}
    after = check(program, given)
    assert [i.name for i in after.function("gradient").inputs[-1:]] == ["seed.2"]


# What is frozen costs nothing.


def backward_ops(program: Program) -> list[Op]:
    """The ops of `gradient` that `forward` does not have, and all of the backward body's."""
    forward, gradient = program.function("forward"), program.function("gradient")
    own = list(gradient.ops[len(forward.ops) :])
    bodies = [f for f in program.functions if f.name.endswith(".backward")]
    return own + [op for f in bodies for op in f.ops]


def test_nothing_runs_back_below_the_lowest_trained_op() -> None:
    others = [name for name in PARAMETERS if name != "final_norm.scale"]
    program = run(llama(frozen=others), ApplyLoss(), Differentiate())
    assert {op.path for op in backward_ops(program)} <= {"loss", "embedding", "final_norm"}
    assert sum(op.kind == "dot" for op in backward_ops(program)) == 1
    assert not any(isinstance(op.attrs, ops.Scan) for op in backward_ops(program))
    assert "layer.forward" not in program.signatures


def test_a_frozen_weight_has_no_gradient_op() -> None:
    """Of the layer's seven maps one trains: seven dots for the inputs, one for that weight."""
    others = [name for name in PARAMETERS if name != "body.mlp.down"]
    program = run(llama(frozen=others), ApplyLoss(), Differentiate())
    body = program.function("layer.backward")
    assert body.outputs == ("grad.x", "grad.mlp.down")
    assert sum(op.kind == "dot" for op in body.ops) == 8
    assert not any(op.kind == "put" for op in backward_ops(program))
    assert program.function("gradient").outputs == ("loss", "count", "grad.body.mlp.down")


@pytest.mark.parametrize("name", list(PARAMETERS))
def test_freezing_one_never_adds_an_op(name: str) -> None:
    whole = run(llama(), ApplyLoss(), Differentiate())
    less = run(llama(frozen=(name,)), ApplyLoss(), Differentiate())
    assert len(backward_ops(less)) < len(backward_ops(whole))
    given = arguments(less, "gradient") | {"seed": np.asarray(1.0)}
    found, full = evaluate(less, "gradient", given), evaluate(whole, "gradient", given)
    assert sorted(set(full) - set(found)) == [f"grad.{name}"]
    for key, value in found.items():
        np.testing.assert_allclose(value, full[key], rtol=1e-12, atol=1e-15, err_msg=key)


def test_only_what_backward_ops_read_is_saved() -> None:
    program = run(llama(), ApplyLoss(), Differentiate())
    body = program.function("layer.backward")
    used = {value for op in body.ops for value in op.operands}
    assert used >= set(range(len(body.inputs)))


def test_backward_ops_keep_the_path_of_theirs() -> None:
    program = run(llama(), ApplyLoss(), Differentiate())
    forward = {op.path for op in program.function("layer").ops}
    backward = {op.path for op in program.function("layer.backward").ops}
    assert backward - {""} <= forward | {"mixing"}
