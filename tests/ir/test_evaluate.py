"""The evaluator against numpy written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Dim, Sizes, Type, indices, tensor
from tests.ir.programs import arguments_for, program_of

SIZES = {"batch": 2, "seq": 5, "embed": 3, "vocab": 7, "heads": 4, "kv_heads": 2, "head_dim": 6}
SIZES["layers"] = 3


def ask(
    build: Callable[[Builder], int | tuple[int, ...]],
) -> tuple[Program, dict[str, Any], list[Any]]:
    """The program that `build` builds, random arguments for it, and its results in order."""
    builder = Builder("main", Sizes(SIZES))
    found = build(builder)
    results = found if isinstance(found, tuple) else (found,)
    function = builder.finish(results, [f"y{number}" for number in range(len(results))])
    program = program_of(function, dims=SIZES)
    given = arguments_for(program, 3)
    return program, given, list(evaluate(program, "main", given).values())


def test_operands_broadcast_by_name() -> None:
    def build(b: Builder) -> int:
        x = b.input("x", tensor("f32", "batch", "seq"))
        w = b.input("w", tensor("f32", "embed", "seq", "batch"))
        return b.one(ops.Sub(), x, w)

    _, given, (y,) = ask(build)
    np.testing.assert_array_equal(y, given["x"].T[None] - given["w"])


def test_dot_with_batch_own_and_contracted_dims() -> None:
    def build(b: Builder) -> int:
        x = b.input("x", tensor("bf16", "seq", "batch", "embed"))
        w = b.input("w", tensor("bf16", "heads", "embed", "batch"))
        return b.one(ops.Dot(("embed",)), x, w)

    _, given, (y,) = ask(build)
    np.testing.assert_allclose(y, np.einsum("sbe,heb->bsh", given["x"], given["w"]), rtol=1e-12)


def test_take_and_put_are_transposes() -> None:
    def build(b: Builder) -> tuple[int, int]:
        table = b.input("table", tensor("f32", "embed", "vocab"))
        index = b.input("t", indices("vocab", "batch", "seq"))
        value = b.input("v", tensor("f32", "embed", "seq", "batch"))
        taken = b.one(ops.Take("vocab"), table, index)
        return taken, b.one(ops.Put(Dim("vocab")), index, value)

    _, given, (taken, put) = ask(build)
    np.testing.assert_array_equal(taken, given["table"].T[given["t"]])
    wanted = np.zeros((7, 3))
    for i in range(2):
        for j in range(5):
            wanted[given["t"][i, j]] += given["v"][:, j, i]
    np.testing.assert_allclose(put, wanted, rtol=1e-12)


def test_pick_and_spread_are_transposes() -> None:
    def build(b: Builder) -> tuple[int, int]:
        x = b.input("x", tensor("f32", "vocab", "batch", "seq"))
        index = b.input("t", indices("vocab", "seq"))
        value = b.input("v", tensor("f32", "batch", "seq"))
        return b.one(ops.Pick("vocab"), x, index), b.one(ops.Spread(Dim("vocab")), value, index)

    _, given, (picked, spread) = ask(build)
    for i in range(2):
        for j in range(5):
            t = given["t"][j]
            assert picked[i, j] == given["x"][t, i, j]
            assert spread[i, j, t] == given["v"][i, j]
            assert np.count_nonzero(spread[i, j]) == 1


@pytest.mark.parametrize("mask", ["causal", "none"])
def test_attend_by_loops(mask: str) -> None:
    def build(b: Builder) -> tuple[int, ...]:
        q = b.input("q", tensor("f32", "heads", "batch", "seq", "head_dim"))
        k = b.input("k", tensor("f32", "batch", "seq", "kv_heads", "head_dim"))
        v = b.input("v", tensor("f32", "batch", "seq", "kv_heads", "head_dim"))
        return b.emit(ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.3, mask), q, k, v)

    _, given, (out, lse) = ask(build)
    for h, b, i in np.ndindex(4, 2, 5):
        seen = i + 1 if mask == "causal" else 5
        scores = 0.3 * given["k"][b, :seen, h // 2] @ given["q"][h, b, i]
        weights = np.exp(scores) / np.exp(scores).sum()
        np.testing.assert_allclose(out[h, b, i], weights @ given["v"][b, :seen, h // 2], rtol=1e-12)
        np.testing.assert_allclose(lse[h, b, i], np.log(np.exp(scores).sum()), rtol=1e-12)


def test_attend_grad_by_differences() -> None:
    attend = ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.3)

    def inputs(b: Builder) -> tuple[int, int, int]:
        q = b.input("q", tensor("f32", "batch", "seq", "heads", "head_dim"))
        k = b.input("k", tensor("f32", "batch", "kv_heads", "seq", "head_dim"))
        return q, k, b.input("v", tensor("f32", "batch", "kv_heads", "seq", "head_dim"))

    def loss(b: Builder) -> int:
        out = b.emit(attend, *inputs(b))[0]
        return b.sum(b.mul(out, b.one(ops.Sin(), out)), ["batch", "seq", "heads", "head_dim"])

    def grad(b: Builder) -> tuple[int, ...]:
        q, k, v = inputs(b)
        out, lse = b.emit(attend, q, k, v)
        d_out = b.add(b.one(ops.Sin(), out), b.mul(out, b.one(ops.Cos(), out)))
        kind = ops.AttendGrad("seq", "heads", "kv_heads", "head_dim", 0.3)
        return b.emit(kind, q, k, v, out, lse, d_out)

    program, given, _ = ask(loss)
    _, _, gradients = ask(grad)
    for name, gradient in zip("qkv", gradients, strict=True):
        way = np.random.default_rng(1).standard_normal(given[name].shape)
        step = 1e-6
        low, high = (
            evaluate(program, "main", {**given, name: given[name] + s * step * way})["y0"]
            for s in (-1, 1)
        )
        np.testing.assert_allclose((high - low) / (2 * step), (gradient * way).sum(), rtol=1e-7)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_rope_turns_pairs_and_back(layout: str) -> None:
    def build(b: Builder) -> tuple[int, int]:
        x = b.input("x", tensor("f32", "head_dim", "batch", "seq"))
        turned = b.one(ops.Rope("seq", "head_dim", 100.0, layout), x)
        return turned, b.one(ops.Rope("seq", "head_dim", 100.0, layout, inverse=True), turned)

    _, given, (turned, back) = ask(build)
    np.testing.assert_allclose(back, given["x"], rtol=1e-12)
    for pair in range(3):
        first, second = (pair, pair + 3) if layout == "half" else (2 * pair, 2 * pair + 1)
        angle = np.arange(5) * 100.0 ** (-2 * pair / 6)
        wanted = (given["x"][first] + 1j * given["x"][second]) * np.exp(1j * angle)
        np.testing.assert_allclose(turned[first] + 1j * turned[second], wanted, rtol=1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_hands_on_carries_and_stacks_the_rest(reverse: bool) -> None:
    body = Builder("body", Sizes(SIZES))
    carry, own, shared = (
        body.input(name, tensor("f32", "embed")) for name in ("carry", "own", "shared")
    )
    new = body.add(body.mul(carry, own), shared)
    layer = body.finish([new, body.mul(carry, new)], ["carry", "saved"])
    main = Builder("main", Sizes(SIZES), {"body": layer.signature})
    main.input("carry", tensor("f32", "embed"))
    main.input("own", tensor("f32", "layers", "embed"))
    main.input("shared", tensor("f32", "embed"))
    results = main.emit(ops.Scan("body", "layers", 1, 1, reverse), 0, 1, 2)
    program = program_of(layer, main.finish(results, ["last", "saved"]), dims=SIZES)
    given = arguments_for(program, 5, "main")
    found = evaluate(program, "main", given)
    x, saved = given["carry"], np.zeros((3, 3))
    for step in (2, 1, 0) if reverse else (0, 1, 2):
        before, x = x, x * given["own"][step] + given["shared"]
        saved[step] = before * x
    np.testing.assert_allclose(found["last"], x, rtol=1e-12)
    np.testing.assert_allclose(found["saved"], saved, rtol=1e-12)


def test_where_less_and_positions() -> None:
    def build(b: Builder) -> int:
        row, column = b.one(ops.Iota(Dim("seq"))), b.one(ops.Iota(Dim("embed")))
        x = b.input("x", tensor("f32", "seq"))
        return b.one(ops.Where(), b.one(ops.Less(), row, column), x, b.constant(-1.0))

    _, given, (y,) = ask(build)
    wanted = np.where(np.arange(5)[:, None] < np.arange(3), given["x"][:, None], -1.0)
    np.testing.assert_array_equal(y, wanted)


def test_casts_change_nothing() -> None:
    def build(b: Builder) -> int:
        return b.cast(b.input("x", tensor("f32", "seq")), "bf16")

    _, given, (y,) = ask(build)
    assert y.dtype == np.float64
    np.testing.assert_array_equal(y, given["x"])


def test_sums_onto_a_base() -> None:
    def build(b: Builder) -> tuple[int, int]:
        base = b.input("base", tensor("f32", "seq", "embed"))
        x = b.input("x", tensor("f32", "batch", "seq"))
        y = b.input("y", tensor("f32", "batch", "embed"))
        index = b.input("t", indices("seq", "batch"))
        return (
            b.one(ops.DotAdd(("batch",)), base, x, y),
            b.one(ops.PutAdd(Dim("seq")), base, index, y),
        )

    _, given, (product, placed) = ask(build)
    wanted = given["base"] + given["x"].T @ given["y"]
    np.testing.assert_allclose(product, wanted, rtol=1e-12)
    wanted = given["base"].copy()
    for i, t in enumerate(given["t"]):
        wanted[t] += given["y"][i]
    np.testing.assert_allclose(placed, wanted, rtol=1e-12)


def test_wrong_arguments_are_refused() -> None:
    builder = Builder("main", Sizes(SIZES))
    builder.input("x", Type("f32", (Dim("seq"),)))
    program = program_of(builder.finish([0], ["y"]), dims=SIZES)
    with pytest.raises(InternalError, match="takes"):
        evaluate(program, "main", {})
    with pytest.raises(InternalError, match="shape"):
        evaluate(program, "main", {"x": np.zeros(4)})
