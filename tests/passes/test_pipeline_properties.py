"""Random specs, compiled pass by pass: each pass keeps the meaning that it says it keeps.

The evaluator runs every entry before and after each pass with the same random arguments. What a
pass adds is checked against numpy, or against the entry that it was made from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from fllmc.ir.evaluate import evaluate
from fllmc.ir.settings import Spec
from fllmc.ir.text import parse_program, print_program
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import OBJECTIVE, ApplyLoss
from fllmc.passes.base import Pass
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.optimizer_step import OptimizerStep
from tests.specs.found_specs import FOUND
from tests.specs.random_specs import OPTIMIZERS, Drawn, specs
from tests.specs.stages import STEP, STEPS, Stage, Values, load_drawn, stages

EXAMPLES = max(1, settings().max_examples // 3)
"""An example is compiled once and evaluated some fifty times: about a second."""
SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]


# Comparison.


def close(found: Values, wanted: Values, tolerance: float, where: str) -> None:
    """Equal norm-wise, gradients to the norm of all of them; bit for bit at tolerance 0."""
    assert found.keys() == wanted.keys(), where
    whole = norm([value for name, value in wanted.items() if name.startswith("grad.")])
    for name, value in wanted.items():
        assert found[name].shape == value.shape, f"{where}: {name}"
        if not tolerance:
            assert np.array_equal(found[name], value), f"{where}: {name}"
            continue
        scale = norm([value]) + (whole if name.startswith("grad.") else 0.0)
        error = norm([found[name] - value])
        # What rounding leaves of a sum that is zero has no relative error.
        assert error <= tolerance * max(scale, 1e-3), f"{where}: {name}: {error} of {scale}"


def norm(values: Sequence[Any]) -> float:
    """The Euclidean norm of all arrays together."""
    return float(np.sqrt(sum(float(np.sum(np.square(value, dtype=float))) for value in values)))


def tolerance(step: Pass) -> float:
    """How far results may move."""
    return 0.0 if step.keeps == "bits" else 1e-10


def keeps_entries(before: Stage, after: Stage, names: Sequence[str], allowed: float) -> None:
    """The entries mean what they meant."""
    assert after.step is not None
    for name in names:
        if after.same_functions(before, name) and name in before.found:
            after.found[name] = before.found[name]
        close(after.run(name), before.run(name), allowed, f"{after.step.name}: {name}")


# What passes add.


def adds_adapter(before: Stage, after: Stage) -> None:
    """Updates whose second part is zero change nothing, and train."""
    values = after.arguments("model")
    for name in values:
        if name.endswith(".lora_b"):
            values[name] = values[name] * 0
    close(after.run_on("model", values), before.run("model"), 0.0, "apply-adapter")
    old = {p.name for p in before.program.parameters}
    new = [p for p in after.program.parameters if p.name not in old]
    assert all(p.trainable and p.name.rpartition(".")[2].startswith("lora_") for p in new)
    assert len(new) < len(after.program.parameters) == len(old) + len(new)


def adds_loss(before: Stage, after: Stage) -> None:
    """The sum of weight times negative log-likelihood with z-loss, and logits at one position."""
    assert isinstance(after.step, ApplyLoss)
    values = after.arguments("forward")
    logits = before.run("model")["out"]
    lse = np.logaddexp.reduce(logits, -1)
    picked = np.take_along_axis(logits, values["targets"][..., None], -1)[..., 0]
    nll = lse - picked + after.step.z_loss * lse**2
    weights = values["weights"]
    wanted = {"loss": np.sum(weights * nll), "count": np.sum(weights)}
    close(after.run("forward"), wanted, 1e-10, "apply-loss")
    position = after.arguments("predict")["position"]
    close(after.run("predict"), {"logits": logits[:, position]}, 0.0, "apply-loss: predict")


def adds_gradients(before: Stage, after: Stage) -> None:
    """One gradient for each parameter that trains, with the loss as it was."""
    keeps_entries(before, after, before.program.entries, 0.0)
    found = after.run("gradient")
    assert list(found) == ["loss", "count", *(f"grad.{name}" for name in after.trained)]
    shapes = {p.name: after.program.sizes.shape(p.type) for p in after.program.parameters}
    assert all(found[f"grad.{name}"].shape == shapes[name] for name in after.trained)
    loss = {name: found[name] for name in ("loss", "count")}
    known = {function.name for function in before.program.functions}
    trained = before.run(OBJECTIVE if OBJECTIVE in known else "forward")
    close(loss, trained, 0.0, "differentiate: gradient")


def adds_microbatches(before: Stage, after: Stage) -> None:
    """Loss and gradients through the count, as of one batch; other entries run on its parts."""
    assert isinstance(after.step, Accumulate)
    count = after.step.microbatches
    values = before.arguments("gradient")
    total = np.sum(values["weights"])
    seed = before.program.function("gradient").inputs[-1].name
    whole = before.run_on("gradient", {**values, seed: 1 / total})
    assert whole.pop("count") == pytest.approx(total, rel=1e-12)
    whole["loss"] = whole["loss"] / total
    shapes = {name: np.shape(value) for name, value in after.arguments("gradients").items()}
    parts = {name: np.reshape(values[name], shape) for name, shape in shapes.items()}
    close(after.run_on("gradients", parts), whole, 1e-10, "accumulate: gradients")
    if count == 1:
        keeps_entries(before, after, ("forward", "predict"), 0.0)
        return
    for entry, join in (("forward", np.sum), ("predict", np.concatenate)):
        found = [after.run_on(entry, part) for part in cut(before, after, entry, count)]
        joined = {name: join([each[name] for each in found], axis=0) for name in found[0]}
        close(joined, before.run(entry), 1e-10, f"accumulate: {entry}")


def cut(before: Stage, after: Stage, entry: str, count: int) -> list[dict[str, Any]]:
    """The arguments of an entry, cut into micro-batches."""
    found: list[dict[str, Any]] = [{} for _ in range(count)]
    for name, value in before.arguments(entry).items():
        function = before.program.function(entry)
        data = "batch" in function.types[function.input_number(name)].names
        here = {given.name for given in after.program.function(entry).inputs}
        new = name if name in here else f"micro.{name}"
        for number, part in enumerate(np.split(value, count) if data else [value] * count):
            found[number][new] = part
    return found


def adds_step(before: Stage, after: Stage, spec: Spec, optimizer: str) -> None:
    """The optimizer's equations in numpy, with gradients that are clipped together."""
    assert isinstance(after.step, OptimizerStep)
    values, found = after.arguments("train"), after.run("train")
    gradients = before.run("gradients")
    wanted = {"loss": gradients["loss"]}
    slopes = {name: gradients[f"grad.{name}"] for name in after.trained}
    wanted["grad_norm"] = np.asarray(norm(list(slopes.values())))
    clip = after.step.clip
    scale = min(1.0, clip / (wanted["grad_norm"] + 1e-6)) if clip else 1.0
    rate = evaluate(spec.program, "rate", {"step": STEP, "steps": STEPS})["rate"]
    for name in after.trained:
        decays = after.program.parameter(name).decays
        held = {n.partition("#")[2]: v for n, v in values.items() if n.startswith(f"{name}#")}
        parts = update(optimizer, values[name], scale * slopes[name], held, rate, decays)
        wanted |= {name + f"#{part}" * (part != "param"): v for part, v in parts.items()}
    close(found, {name: wanted[name] for name in found}, 1e-10, "optimizer-step: train")
    assert found.keys() == wanted.keys()
    close(after.run("evaluate"), before.run("forward"), 0.0, "optimizer-step: evaluate")
    close(after.run("predict"), before.run("predict"), 0.0, "optimizer-step: predict")


def update(name: str, p: Any, g: Any, s: Values, rate: Any, decays: bool) -> dict[str, Any]:
    """A parameter and its states after a step of one of OPTIMIZERS."""
    kind = OPTIMIZERS.index(name)
    decay = 0.1 * decays
    if kind in (0, 1):
        beta, eps, decay = (0.95, 1e-4, decay) if kind == 0 else (0.999, 1e-3, 0.0)
        m, v = 0.9 * s["m"] + 0.1 * g, beta * s["v"] + (1 - beta) * g**2
        way = m / (1 - 0.9**STEP) / (np.sqrt(v / (1 - beta**STEP)) + eps)
        return {"param": p - rate * (way + decay * p), "m": m, "v": v}
    if kind == 2:
        slope = g + decay * p
        m = 0.9 * s["m"] + slope
        return {"param": p - rate * (slope + 0.9 * m), "m": m}
    if kind == 3:
        return {"param": p - rate * g, **({"m": g} if "m" in s else {})}
    way = np.sign(0.9 * s["m"] + 0.1 * g)
    return {"param": p - rate * (way + decay * p), "m": 0.99 * s["m"] + 0.01 * g}


ADDED: Mapping[type[Pass], Callable[[Stage, Stage], None]] = {
    ApplyAdapter: adds_adapter,
    ApplyLoss: adds_loss,
    Differentiate: adds_gradients,
    Accumulate: adds_microbatches,
}


def judge(before: Stage, after: Stage, spec: Spec, drawn: Drawn) -> None:
    """The pass keeps what it says it keeps, and adds what it is there for."""
    step = after.step
    assert step is not None
    if isinstance(step, OptimizerStep):
        adds_step(before, after, spec, drawn.optimizer)
    elif type(step) in ADDED:
        ADDED[type(step)](before, after)
    else:
        assert set(after.program.entries) == set(before.program.entries)
        keeps_entries(before, after, before.program.entries, tolerance(step))


def holds(drawn: Drawn) -> None:
    """Every pass on the way keeps its promise."""
    spec, mesh = load_drawn(drawn)
    found = stages(spec, mesh)
    for before, after in pairwise(found):
        judge(before, after, spec, drawn)


def prints_and_parses(drawn: Drawn) -> None:
    """The text of the program after each pass parses back to the same program."""
    for stage in stages(*load_drawn(drawn)):
        assert parse_program(print_program(stage.program)) == stage.program


@pytest.mark.parametrize("name", FOUND)
def test_specs_that_were_wrong_once(name: str) -> None:
    holds(FOUND[name])
    prints_and_parses(FOUND[name])


@given(specs())
@settings(max_examples=EXAMPLES, suppress_health_check=SLOW)
def test_every_pass_keeps_its_promise(drawn: Drawn) -> None:
    holds(drawn)


@given(specs())
@settings(max_examples=max(1, EXAMPLES // 4), suppress_health_check=SLOW)
def test_the_text_after_every_pass_parses_back(drawn: Drawn) -> None:
    prints_and_parses(drawn)
