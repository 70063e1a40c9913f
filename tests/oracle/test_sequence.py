"""Convolutions and recurrences: the evaluator, JAX and the gradients' own ops agree."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
import pytest

from fllmc.codegen.jax_target import jax_function
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Init, Parameter, Program
from fllmc.ir.types import Mesh, Sizes, tensor
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from tests.ir.programs import arguments_for

SIZES = {
    "batch": 2, "seq": 6, "half": 3, "channel": 3, "own": 2, "group": 2, "tap": 3, "wide": 4,
    "tall": 5, "flat": 3, "taps": 2, "heads": 4, "state": 3, "value": 2,
}  # fmt: skip

ROW, QK = ("batch", "seq", "heads"), ("batch", "seq", "group", "state")
VALUE = ("batch", "seq", "heads", "value")
RECUR = ("seq", "state", "value", "heads")
CASES: dict[str, tuple[ops.AnyAttrs, tuple[tuple[str, ...], ...]]] = {
    "depthwise": (
        ops.Conv(("seq",), ("tap",), ("seq",), (), (1,), (2,)),
        (("batch", "seq", "channel"), ("channel", "tap")),
    ),
    "strided": (
        ops.Conv(("seq",), ("tap",), ("half",), ("channel",), (2,), (1,)),
        (("batch", "seq", "channel"), ("channel", "own", "tap")),
    ),
    "in groups, along two dims": (
        ops.Conv(("tall", "wide"), ("tap", "taps"), ("flat", "half"), ("channel",), (1, 2), (1, 0)),
        (("wide", "group", "tall", "batch", "channel"), ("tap", "group", "own", "taps", "channel")),
    ),
    "shared keys": (
        ops.Recur(*RECUR),
        (("batch", "seq", "state"), ("batch", "seq", "state"), VALUE, ROW),
    ),
    "groups": (ops.Recur(*RECUR, "group"), (QK, QK, VALUE, ROW)),
    "no heads": (
        ops.Recur("seq", "state", "value"),
        (("state", "seq", "batch"), ("state", "seq", "batch"), ("batch", "seq", "value"), ROW[:2]),
    ),
    "delta rule": (ops.Recur(*RECUR, "group"), (QK, QK, VALUE, ROW, ROW)),
}


@pytest.fixture(autouse=True)
def wide() -> Iterator[None]:
    """64-bit values, for these tests only."""
    before = jax.config.read("jax_enable_x64")
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def program(name: str) -> Program:
    """The loss sum(sin(op(...))), where every operand is a parameter that trains."""
    attrs, dims = CASES[name]
    b = Builder("forward", Sizes(SIZES))
    given = [b.input(f"x{n}", tensor("f64", *each), "param") for n, each in enumerate(dims)]
    negative = [b.neg(b.mul(x, x)) if n == 3 else x for n, x in enumerate(given)]
    out = b.one(ops.Sin(), b.one(attrs, *negative))
    loss = b.sum(out, b.types[out].names)
    function = b.finish([loss], ["loss"])
    params = tuple(
        Parameter(f"x{n}", tensor("f64", *each), Init("normal", 1.0)) for n, each in enumerate(dims)
    )
    sized = tuple(DimSize(*pair) for pair in SIZES.items())
    return Program("training", sized, (function,), ("forward",), params)


QUICK = ("in groups, along two dims", "delta rule")
LATER = [pytest.param(name, marks=pytest.mark.long) for name in CASES if name not in QUICK]


@pytest.mark.parametrize("name", [*QUICK, *LATER])
def test_jax_and_the_gradients_agree(name: str) -> None:
    whole = Differentiate().run(program(name), Context(Mesh(), lambda found: None))
    arguments: dict[str, Any] = arguments_for(whole, 3, "gradient")
    found = evaluate(whole, "gradient", {**arguments, "seed": 1.0})
    given = {key: value for key, value in arguments.items() if key != "seed"}
    run = jax_function(whole, "forward")
    slopes = jax.grad(lambda held: run(held)["loss"])(given)
    np.testing.assert_allclose(found["loss"], run(given)["loss"], rtol=1e-10)
    theirs = jax_function(whole, "gradient")({**arguments, "seed": 1.0})
    for key, slope in slopes.items():
        np.testing.assert_allclose(found[f"grad.{key}"], slope, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(theirs[f"grad.{key}"], slope, rtol=1e-9, atol=1e-9)
