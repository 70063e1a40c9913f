"""Gradients of random specs as JAX sees them, and what is frozen has none.

`jax.grad` of the loss, run by rules that share nothing with the evaluator's or with the pass that
differentiates, is the second judge of the gradient.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings

from fllmc.ir.ops import Dot, Put, Scan
from fllmc.ir.program import Parameter, Program
from fllmc.ir.types import Mesh
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import OBJECTIVE
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.inline import reachable
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.specs.random_specs import Drawn, specs
from tests.specs.stages import Stage, load_drawn

jax = pytest.importorskip("jax")

from fllmc.codegen.jax_target import jax_function  # noqa: E402

TOLERANCE = 1e-9
ONE_DEVICE = ("",)
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


@pytest.fixture(autouse=True, scope="module")
def wide() -> Iterator[None]:
    """64-bit values, for these tests only."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    yield
    jax.config.update("jax_enable_x64", before)


def differentiated(drawn: Drawn, adapted: bool = True, last: bool = True) -> Program:
    """The training program with `forward` and `gradient`; if not `last`, with the loss alone."""
    spec, _ = load_drawn(drawn)
    passes = standard_pipeline(spec)
    behind = next(n for n, step in enumerate(passes) if isinstance(step, Differentiate))
    used = [
        step for step in passes[: behind + last] if adapted or not isinstance(step, ApplyAdapter)
    ]
    cx = Context(Mesh(), lambda _: None)
    return run_pipeline(spec.program, used, cx, lambda: 0.0)[0]


def by_jax(program: Program, values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """jax.grad of the loss that is trained on to these parameters."""
    known = {function.name for function in program.functions}
    forward = jax_function(program, OBJECTIVE if OBJECTIVE in known else "forward")

    def loss(held: dict[str, Any], rest: dict[str, Any]) -> Any:
        return forward({**rest, **held})["loss"]

    held = {name: values[name] for name in names}
    rest = {name: value for name, value in values.items() if name not in held}
    found = jax.jit(jax.grad(loss))(held, rest)
    return {name: np.asarray(value) for name, value in found.items()}


def agrees_with_jax(drawn: Drawn) -> None:
    """Every gradient is JAX's, to TOLERANCE of the norm of it or of a thousandth of all of them."""
    program = differentiated(drawn)
    stage = Stage(None, program)
    values = stage.arguments("gradient")
    seed = program.function("gradient").inputs[-1].name
    found = stage.run_on("gradient", {**values, seed: 1.0})
    given = {name: value for name, value in values.items() if name != seed}
    wanted = by_jax(differentiated(drawn, last=False), given, stage.trained)
    whole = np.sqrt(sum(np.sum(value**2) for value in wanted.values()))
    for name, value in wanted.items():
        error = np.linalg.norm(found[f"grad.{name}"] - value)
        # A gradient that is zero, as of a key's bias, is known to what rounding leaves of it.
        scale = max(np.linalg.norm(value), 1e-3 * whole, 1e-6)
        assert error <= TOLERANCE * scale, f"{name}: {error} of {scale}"


@given(specs(ONE_DEVICE))
@settings(max_examples=max(1, settings().max_examples // 5), suppress_health_check=SLOW)
def test_gradients_are_those_of_jax(drawn: Drawn) -> None:
    agrees_with_jax(drawn)


# What is frozen costs nothing.


MAPS = ("embedding", "head", "wq", "wk", "wv", "wo", "up", "down", "gate", "mix")
"""Arrows of random models whose gradient is always a product or a scatter of their own."""


def weight_gradients(program: Program, parameter: Parameter) -> int:
    """Ops that make a gradient of a map: products or scatters with all of its dims."""
    names = sorted(name for name in parameter.type.names if name != parameter.stack)
    gradient, path = program.function("gradient"), parameter.name
    functions = [gradient]
    if parameter.stack:
        stack, _, path = parameter.name.partition(".")
        functions = [
            program.function(op.attrs.function)
            for op in gradient.ops
            if isinstance(op.attrs, Scan) and op.path == stack
        ]
        assert functions, stack
    return sum(
        sorted(function.types[op.results[0]].names) == names
        for function in functions
        for op in function.ops
        if isinstance(op.attrs, Dot | Put) and op.path == path
    )


def counted(program: Program) -> Counter[str]:
    """Ops that the gradient runs, by kind."""
    used = reachable(program, ("gradient",))
    functions = [f for f in program.functions if f.name in used]
    return Counter(op.kind for function in functions for op in function.ops)


def frozen_is_free(drawn: Drawn) -> None:
    """No gradient and no op for what is frozen; each map that trains has its gradient's op."""
    program = differentiated(drawn)
    outputs = set(program.function("gradient").outputs)
    frozen = [p for p in program.parameters if not p.trainable]
    assume(frozen)
    everything = differentiated(drawn, adapted=False)
    for parameter in frozen:
        assert f"grad.{parameter.name}" not in outputs
        assert not weight_gradients(program, parameter), parameter.name
    for parameter in everything.parameters:
        assert f"grad.{parameter.name}" in everything.function("gradient").outputs
    for parameter in frozen:
        if parameter.name.rpartition(".")[2] in MAPS:
            assert weight_gradients(everything, parameter), parameter.name
    if all(p.name in {q.name for q in everything.parameters} for p in program.parameters):
        assert counted(program).total() < counted(everything).total()
    left = DropUnused().run(program, Context(Mesh(), lambda _: None))
    assert counted(left) == counted(program)


@given(specs(ONE_DEVICE))
@settings(suppress_health_check=SLOW)
def test_frozen_is_free(drawn: Drawn) -> None:
    frozen_is_free(drawn)
