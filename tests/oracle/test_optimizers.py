"""Every optimizer of the library against torch's own, or its paper's equations in numpy."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cache
from math import sqrt
from typing import Any

import numpy as np
import pytest
import torch

from fllmc.frontend import load
from fllmc.passes.step_equations import state_types
from tests.codegen.running import check, compiled
from tests.specs.evaluated import evaluated_step
from tests.specs.stepped import Values, parameters, program_of, run, slopes, small

RATE, STEPS = 0.02, 5
INITIAL = {"product": 1.0}


@pytest.fixture
def doubles() -> Iterator[None]:
    """Else torch keeps NAdam's product of momenta in f32."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


Step = Callable[[np.ndarray, np.ndarray, int, dict[str, np.ndarray]], np.ndarray]
"""The new parameter of the old one, its gradient, the step and what is kept between steps."""


@cache
def stepped(optimizer: str, rate: float = RATE) -> tuple[list[Values], list[Values]]:
    """The parameters before each step and after the last, and the gradients there."""
    text = small(optimizer, f"constant(peak: {rate})")
    program = program_of(text)
    before = [parameters(program), *run(program, INITIAL, STEPS)]
    return before, slopes(text, before[:-1])


def matrices(values: Values) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters as matrices of what they take by what they give, each layer of its own."""
    for name, value in values.items():
        if "#" in name or name in ("loss", "grad_norm"):
            continue
        layers = value if name.startswith("body.") else value[None]
        for number, layer in enumerate(layers):
            if name.endswith("wo"):
                layer = layer.reshape(-1, layer.shape[-1])
            elif layer.ndim > 1:
                layer = layer.reshape(layer.shape[0], -1)
            yield f"{name}.{number}", layer


def compare(optimizer: str, expected: Mapping[str, np.ndarray], tolerance: float) -> None:
    """All parameters after the last step are as expected."""
    for name, value in matrices(stepped(optimizer)[0][-1]):
        np.testing.assert_allclose(value, expected[name], rtol=tolerance, atol=1e-12, err_msg=name)


ADAFACTOR = {"lr": RATE, "eps": (1e-30, 1e-3)}


@pytest.mark.parametrize(
    ("optimizer", "made"),
    [
        ("adamw(weight_decay: 0.1)", lambda p: torch.optim.AdamW(p, lr=RATE, weight_decay=0.1)),
        ("adam(eps: 1e-6)", lambda p: torch.optim.Adam(p, lr=RATE, eps=1e-6)),
        (
            "nadamw(weight_decay: 0.1)",
            lambda p: torch.optim.NAdam(p, lr=RATE, weight_decay=0.1, decoupled_weight_decay=True),
        ),
        ("sgd()", lambda p: torch.optim.SGD(p, lr=RATE)),
        (
            "sgd(momentum: 0.9, dampening: 0.3, weight_decay: 0.1)",
            lambda p: torch.optim.SGD(p, RATE, momentum=0.9, dampening=0.3, weight_decay=0.1),
        ),
        (
            "sgd(momentum: 0.9, nesterov: true)",
            lambda p: torch.optim.SGD(p, lr=RATE, momentum=0.9, nesterov=True),
        ),
        (
            "adafactor(weight_decay: 0.1)",
            lambda p: torch.optim.Adafactor(p, weight_decay=0.1, **ADAFACTOR),
        ),
        ("adafactor(clip: 1.5)", lambda p: torch.optim.Adafactor(p, d=1.5, **ADAFACTOR)),
    ],
)
def test_steps_are_those_of_torch(
    optimizer: str,
    made: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer],
    doubles: None,
) -> None:
    before, grads = stepped(optimizer)
    params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in matrices(before[0])}
    steps = made(list(params.values()))
    for slope in grads:
        for name, value in matrices(slope):
            params[name].grad = torch.tensor(value)
        steps.step()
    compare(optimizer, {n: p.detach().numpy() for n, p in params.items()}, 1e-9)


@pytest.mark.long
@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("adafactor(beta: 0.9)", {"beta1": 0.9, "lr": None}),
        (
            "adafactor(relative: false, scaled: false)",
            {"lr": 0.01, "relative_step": False, "scale_parameter": False},
        ),
        ("adafactor(relative: false)", {"lr": 0.01, "relative_step": False}),
    ],
)
def test_adafactor_is_that_of_transformers(optimizer: str, options: dict[str, Any]) -> None:
    from transformers.optimization import Adafactor

    before, grads = stepped(optimizer, 0.01)
    params = {n: torch.nn.Parameter(torch.tensor(v)) for n, v in matrices(before[0])}
    steps = Adafactor(list(params.values()), **options)
    for slope in grads:
        for name, value in matrices(slope):
            params[name].grad = torch.tensor(value)
        steps.step()
    for name, value in matrices(before[-1]):
        found = params[name].detach().numpy()
        np.testing.assert_allclose(found, value, rtol=1e-6, atol=1e-7, err_msg=name)


def lion(p: np.ndarray, g: np.ndarray, step: int, kept: dict[str, np.ndarray]) -> np.ndarray:
    """Chen et al. 2023, algorithm 2."""
    m = kept.get("m", 0 * p)
    kept["m"] = 0.99 * m + 0.01 * g
    return p - RATE * (np.sign(0.9 * m + 0.1 * g) + 0.1 * p)


def lamb(p: np.ndarray, g: np.ndarray, step: int, kept: dict[str, np.ndarray]) -> np.ndarray:
    """You et al. 2020, algorithm 2, with the identity as phi."""
    m = kept["m"] = 0.9 * kept.get("m", 0 * p) + 0.1 * g
    v = kept["v"] = 0.999 * kept.get("v", 0 * p) + 0.001 * g**2
    way = m / (1 - 0.9**step) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + 0.01 * p
    return p - RATE * np.linalg.norm(p) / np.linalg.norm(way) * way


def muon(match_rms: bool) -> Step:
    """Jordan et al. 2024: Nesterov momentum, and five turns of the quintic iteration."""

    def step(p: np.ndarray, g: np.ndarray, _: int, kept: dict[str, np.ndarray]) -> np.ndarray:
        m = kept["m"] = 0.95 * kept.get("m", 0 * p) + 0.05 * g
        way = np.atleast_2d(0.95 * m + 0.05 * g)
        x = way if way.shape[0] <= way.shape[1] else way.T
        x = x / max(np.linalg.norm(x), 1e-7)
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x + (-4.775 * gram + 2.0315 * gram @ gram) @ x
        x = (x if way.shape[0] <= way.shape[1] else x.T).reshape(p.shape)
        rows, columns = way.shape
        scale = 0.2 * sqrt(max(rows, columns)) if match_rms else sqrt(max(1, columns / rows))
        return p - RATE * (scale * x + 0.1 * p)

    return step


@pytest.mark.parametrize(
    ("optimizer", "step"),
    [
        ("lion(weight_decay: 0.1)", lion),
        ("lamb()", lamb),
        ("muon()", muon(False)),
        ("muon(match_rms: true)", muon(True)),
    ],
)
def test_steps_are_those_of_the_paper(optimizer: str, step: Step) -> None:
    before, grads = stepped(optimizer)
    params = dict(matrices(before[0]))
    kept: dict[str, dict[str, np.ndarray]] = {name: {} for name in params}
    for number, slope in enumerate(grads, 1):
        for name, value in matrices(slope):
            params[name] = step(params[name], value, number, kept[name])
    compare(optimizer, params, 1e-9)


RATES = ("constant(peak: 0.1)", "linear(peak: 0.5)")
SHARDS = "shard batch over data shard (heads, kv_heads, ffn, vocab) over tensor"
PIPE = "shard batch over data shard layers over pipe microbatches: 2"


def placed(
    optimizer: str, directives: str, rate: str = "constant(peak: 0.02)", more: str = ""
) -> str:
    """The model with a schedule."""
    return small(optimizer, rate, more) + f"schedule s for once {{ {directives} }}"


TWO = """optimizer in [embedding, head, *.scale]: adamw(weight_decay: 0.3)
  rate in head: linear(peak: 0.5)
  no_decay: [*.scale, body.*.mlp.down]"""


@pytest.mark.parametrize(
    ("mesh", "directives"),
    [
        ("1", "microbatches: 2"),
        pytest.param("data=2,tensor=2", f"{SHARDS} zero 3 over data", marks=pytest.mark.long),
    ],
)
def test_each_parameter_is_stepped_by_its_own_optimizer(mesh: str, directives: str) -> None:
    """What one run does with two is what two runs do, each with one."""

    def once(optimizer: str, rate: str = "constant(peak: 0.1)", more: str = "") -> Values:
        text = placed(optimizer, directives, rate, more)
        return run(program_of(text, mesh), INITIAL, 1)[0]

    both = once("muon(weight_decay: 0.2)", more=TWO)
    inner, plain = once("muon(weight_decay: 0.2)"), once("muon(weight_decay: 0)")
    outer, head = (once("adamw(weight_decay: 0.3)", rate) for rate in RATES)
    scale = once("adamw(weight_decay: 0)")
    assert set(both) == {n for n in outer if "body" not in n or "scale" in n or "#v" not in n}
    for name, value in both.items():
        own = name.partition("#")[0]
        wanted = outer if own == "embedding" else head if own == "head" else inner
        wanted = scale if own.endswith("scale") else plain if own == "body.mlp.down" else wanted
        np.testing.assert_allclose(value, wanted[name], rtol=1e-12, err_msg=name)


def states(optimizer: str, parameter: str) -> dict[str, int]:
    """The elements of each state that is kept of a parameter."""
    spec, _, _ = load("states.fllm", text=small(optimizer))
    assert spec is not None
    kept = spec.program.parameter(parameter)
    kinds = state_types(spec.program, kept, kept.type)
    return {name: int(np.prod(spec.program.sizes.shape(kind))) for name, kind in kinds.items()}


def test_what_is_kept_is_what_is_needed() -> None:
    assert states("sgd()", "head") == {}
    assert states("sgd(momentum: 0.9)", "head") == {"m": 8 * 256}
    assert states("adafactor()", "body.mlp.up") == {"a": 2 * 8, "b": 2 * 16}
    assert states("adafactor(beta: 0.9)", "head") == {"m": 8 * 256, "a": 8, "b": 256}
    assert states("adafactor()", "final_norm.scale") == {"v": 8}


MIXING = ("adafactor()", "lamb()", "muon()")


@pytest.mark.parametrize(
    ("optimizer", "zero"),
    [(each, zero) for zero, each in zip((1, 2, 3), MIXING, strict=True)]
    + [
        pytest.param(each, zero, marks=pytest.mark.long)
        for each in (*MIXING, "nadamw()", "lion()", "sgd(momentum: 0.9)")
        for zero in (1, 2, 3)
    ],
)
def test_a_step_on_a_mesh_is_that_of_one_device(optimizer: str, zero: int) -> None:
    text = placed(optimizer, f"{SHARDS} zero {zero} over data")
    one, found = (run(program_of(text, mesh), INITIAL, 2) for mesh in ("1", "data=2,tensor=2"))
    for name, value in one[-1].items():
        np.testing.assert_allclose(found[-1][name], value, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    "optimizer", [pytest.param(each, marks=pytest.mark.long) for each in MIXING]
)
def test_a_step_of_a_pipeline_is_that_of_one_device(optimizer: str) -> None:
    one = evaluated_step(placed(optimizer, "microbatches: 2"), "1")
    found = evaluated_step(placed(optimizer, PIPE), "pipe=2,data=2")
    for name, value in one.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


@pytest.mark.parametrize(
    "optimizer",
    ["muon()", *(pytest.param(e, marks=pytest.mark.long) for e in (*MIXING, "nadamw()"))],
)
def test_the_compiled_step_is_the_evaluators(optimizer: str) -> None:
    check(compiled(small(optimizer)))
