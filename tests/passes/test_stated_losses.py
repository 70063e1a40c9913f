"""Losses as equations: their values against torch, and the step that they give on any mesh."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fllmc.frontend import load
from fllmc.ir.evaluate import evaluate
from fllmc.ir.render import render
from tests.codegen.running import check, compiled
from tests.specs.stepped import Values, program_of, run, small

POLICY = "clipped_policy(low: 0.1, high: 0.3, kl: 0.2)"
SHARDS = "shard batch over data shard (heads, kv_heads, ffn, vocab) over tensor"


def spec_of(loss: str, more: str = "") -> str:
    """The small model with a loss, and data with the columns that it may need."""
    text = small("adamw()").replace("cross_entropy()", loss)
    return text.replace("batch: 8", "batch: 8 columns: [advantages, sampled, reference]") + more


def valued(loss: str) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Random columns, and the loss of each token as the spec states it."""
    spec, found, sources = load("loss.fllm", text=spec_of(loss))
    assert spec is not None, render(found, sources)
    function = spec.program.function("loss")
    rng, given = np.random.default_rng(7), dict[str, np.ndarray]()
    for each, kind in zip(function.inputs, function.types, strict=False):
        shape = spec.program.sizes.shape(kind)
        values = rng.normal(0, 1, shape)
        given[each.name] = rng.integers(0, 256, shape) if kind.index else values
        if each.name in ("sampled", "reference"):
            given[each.name] = values * 0.3 - 5.5
    program = spec.program.with_functions()
    value = evaluate(program, "loss", given)
    return {n: torch.tensor(v) for n, v in given.items()}, torch.tensor(value["out"])


def nll(logits: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Negative log-likelihoods of tokens."""
    flat = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), reduction="none", label_smoothing=smoothing
    )
    return flat.reshape(targets.shape)


def test_cross_entropy_with_smoothing() -> None:
    given, found = valued("smoothed_cross_entropy(smoothing: 0.2, z_loss: 0.01)")
    wanted = nll(given["logits"], given["targets"], 0.2)
    wanted += 0.01 * given["logits"].logsumexp(-1) ** 2
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_clipped_policy() -> None:
    given, found = valued(POLICY)
    chosen = -nll(given["logits"], given["targets"])
    ratio, advantages = (chosen - given["sampled"]).exp(), given["advantages"]
    assert bool(((ratio < 0.9) | (ratio > 1.3)).any())
    gain = torch.minimum(ratio * advantages, ratio.clamp(0.9, 1.3) * advantages)
    apart = given["reference"] - chosen
    torch.testing.assert_close(found, 0.2 * (apart.exp() - apart - 1) - gain)


def step(text: str, mesh: str = "1") -> Values:
    """What one step gives."""
    return run(program_of(text, mesh), {}, 1)[0]


def test_the_stated_cross_entropy_is_the_built_in_one() -> None:
    stated = step(spec_of("smoothed_cross_entropy(smoothing: 0, z_loss: 0.01)"))
    built_in = step(spec_of("cross_entropy(z_loss: 0.01)"))
    for name, value in built_in.items():
        np.testing.assert_allclose(stated[name], value, rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("loss", ["smoothed_cross_entropy()", POLICY])
@pytest.mark.parametrize(
    ("mesh", "directives"),
    [
        ("data=2,tensor=2", f"{SHARDS} microbatches: 2"),
        ("data=2,tensor=2", f"{SHARDS} loss_chunks: 2"),
        pytest.param("context=2", "shard seq over context", marks=pytest.mark.long),
        pytest.param("fsdp=2", "shard batch over fsdp zero 3 over fsdp", marks=pytest.mark.long),
    ],
)
def test_a_step_on_a_mesh_is_that_of_one_device(loss: str, mesh: str, directives: str) -> None:
    one = step(spec_of(loss))
    found = step(spec_of(loss, f"schedule s for once {{ {directives} }}"), mesh)
    for name, value in one.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)


def test_the_compiled_step_is_the_evaluators() -> None:
    check(compiled(spec_of(POLICY)))


LOSS = """
loss own(logits: [batch, seq, vocab], {inputs}) -> {result} {{
  return {value}
}}
"""


@pytest.mark.parametrize(
    ("inputs", "result", "value", "code"),
    [
        ("weights: [batch, seq], k = 2", "[batch, seq]", "k * max[vocab](logits)", ""),
        ("k = 2", "[batch, seq]", "k * max[vocab](logits)", "E0230"),
        ("weights: [batch]", "[batch, seq]", "max[vocab](logits)", "E0230"),
        ("weights: [batch]", "[batch]", "max[seq, vocab](logits)", "E0250"),
        (
            "weights: [batch, seq], odd: [batch, seq]",
            "[batch, seq]",
            "odd + max[vocab](logits)",
            "E0250",
        ),
        ("weights: [batch, seq], k = seq", "[batch, seq]", "k * max[vocab](logits)", "E0230"),
    ],
)
def test_what_a_loss_has_to_be(inputs: str, result: str, value: str, code: str) -> None:
    text = spec_of("own()", LOSS.format(inputs=inputs, result=result, value=value))
    spec, found, _ = load("loss.fllm", text=text)
    assert [each.code for each in found] == ([code] if code else [])
    assert (spec is None) == bool(code)
