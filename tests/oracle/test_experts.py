"""Mixtures of experts mean what a dense product, a loop, JAX and plain PyTorch say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place_errors import Indivisible
from fllmc.passes.runner import run_pipeline
from tests.oracle.compiled import Case, run_cases
from tests.oracle.moe_specs import (
    BATCH,
    CHOICES,
    EMBED,
    EXPERTS,
    LAYERS,
    SEQ,
    SLOTS,
    VOCAB,
    moe_spec,
)
from tests.oracle.reference import Batch
from tests.oracle.test_gradients_against_jax import agrees_with_jax
from tests.specs.evaluated import evaluated_step
from tests.specs.random_specs import Drawn

EXACT, CLOSE = 1e-12, 1e-11
WAYS = {
    "plain": ("microbatches: 1",),
    "micro-batches": ("microbatches: 4",),
    "recomputed": ("recompute body.*",),
    "both": ("microbatches: 2", "recompute *"),
}
Values = Mapping[str, Any]


def furthest(found: Values, wanted: Values) -> float:
    """The largest difference of a tensor from what is wanted, by the norm of that."""
    assert sorted(found) == sorted(wanted)
    pairs = ((np.asarray(found[name]), np.asarray(wanted[name])) for name in wanted)
    return max(float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30)) for a, b in pairs)


@pytest.mark.parametrize("way", WAYS)
def test_dropless_experts_are_the_dense_product_with_zero_weights(way: str) -> None:
    dense = evaluated_step(moe_spec("dense"), "1")
    assert furthest(evaluated_step(moe_spec("moe", *WAYS[way]), "1"), dense) < EXACT


@pytest.mark.parametrize("way", WAYS)
def test_a_capacity_that_suffices_drops_nothing(way: str) -> None:
    dense = evaluated_step(moe_spec("dense"), "1")
    found = evaluated_step(moe_spec("capacity_moe", *WAYS[way], slots=SEQ), "1")
    assert furthest(found, dense) < EXACT


@pytest.mark.parametrize("way", WAYS)
def test_what_is_dropped_does_not_depend_on_the_schedule(way: str) -> None:
    plain = evaluated_step(moe_spec("capacity_moe"), "1")
    assert furthest(evaluated_step(moe_spec("capacity_moe", *WAYS[way]), "1"), plain) < EXACT
    assert furthest(evaluated_step(moe_spec("dense"), "1"), plain) > 1e-3


def test_a_capacity_drops_tokens_in_their_order() -> None:
    spec, _, _ = load("moe.fllm", text=moe_spec("capacity_moe"))
    assert spec is not None
    block = spec.program.function("capacity_moe")
    rng = np.random.default_rng(0)
    values = {
        given.name: rng.standard_normal(spec.program.sizes.shape(kind))
        for given, kind in zip(block.inputs, block.types, strict=False)
    }
    found = evaluate(spec.program, "capacity_moe", values)["out"]
    wanted, dropped = by_loop(values)
    assert dropped > 0
    assert np.abs(found - wanted).max() < EXACT


def by_loop(values: Values) -> tuple[np.ndarray, int]:
    """The block token by token, and how many choices were dropped."""
    x, dropped = values["x"], 0
    out = np.zeros_like(x)
    for sample, tokens in enumerate(x):
        taken = [0] * EXPERTS
        for place, token in enumerate(tokens):
            scores = np.exp(token @ values["router"])
            scores /= scores.sum()
            chosen = sorted(range(EXPERTS), key=lambda n: (-scores[n], n))[:CHOICES]
            for expert in chosen:
                taken[expert] += 1
                if taken[expert] > SLOTS:
                    dropped += 1
                    continue
                gate, up = (token @ values[name][expert] for name in ("gate", "up"))
                hidden = gate / (1 + np.exp(-gate)) * up
                weight = scores[expert] / scores[chosen].sum()
                out[sample, place] += weight * (hidden @ values["down"][expert])
    return out, dropped


@pytest.mark.parametrize("block", ["moe", "capacity_moe"])
def test_gradients_are_those_of_jax(block: str) -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    agrees_with_jax(Drawn(moe_spec(block)))
    jax.config.update("jax_enable_x64", before)


# Compiled plans against plain PyTorch.


def batches(count: int = 2) -> list[Batch]:
    """Batches of tokens; some weigh nothing."""
    generator = torch.Generator().manual_seed(5)
    shape = (BATCH, SEQ)
    return [
        Batch(
            torch.randint(VOCAB, shape, generator=generator),
            torch.randint(VOCAB, shape, generator=generator),
            torch.rand(shape, generator=generator) * (torch.rand(shape, generator=generator) < 0.7),
        )
        for _ in range(count)
    ]


def beginning() -> dict[str, torch.Tensor]:
    """Random parameters."""
    generator = torch.Generator().manual_seed(3)
    spec, _, _ = load("moe.fllm", text=moe_spec("moe"))
    assert spec is not None
    return {
        p.name: torch.randn(spec.program.sizes.shape(p.type), generator=generator).double() * 0.3
        for p in spec.program.parameters
    }


def layered(params: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parameters, each layer's apart."""
    found = {name: value for name, value in params.items() if not name.startswith("body.")}
    for name in params.keys() - found.keys():
        for layer in range(LAYERS):
            found[name.replace("body.", f"body.{layer}.")] = params[name][layer].contiguous()
    return found


def reference_loss(params: Mapping[str, torch.Tensor], batch: Batch, slots: int) -> torch.Tensor:
    """The loss in plain PyTorch, expert by expert, each over the tokens that chose it."""
    x = params["embedding"][batch.tokens]
    for layer in range(LAYERS):
        own = {name: value[layer] for name, value in params.items() if name.startswith("body.")}
        scale = own["body.norm.scale"]
        normed = torch.nn.functional.rms_norm(x, (EMBED,), scale, 1e-5)
        scores = (normed @ own["body.moe.router"]).softmax(-1)
        top, chosen = scores.topk(CHOICES, -1)
        weights = top / top.sum(-1, keepdim=True)
        total = torch.zeros_like(x)
        for expert in range(EXPERTS):
            mine = chosen == expert
            if slots:
                place = mine.flatten(1).cumsum(1).view(mine.shape)
                mine = mine & (place <= slots)
            sample, token, choice = mine.nonzero(as_tuple=True)
            rows = normed[sample, token]
            gate, up, down = (own[f"body.moe.{name}"][expert] for name in ("gate", "up", "down"))
            rows = torch.nn.functional.silu(rows @ gate) * (rows @ up) @ down
            rows = rows * weights[sample, token, choice][:, None]
            total = total.index_put((sample, token), rows, accumulate=True)
        x = x + total
    logits = x @ params["head"]
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, batch.targets[..., None])[..., 0]
    losses = lse - picked + 0.1 * lse.square()
    weights = batch.weights.double()
    return (losses * weights).sum() / weights.sum()


def reference_gradients(slots: int) -> tuple[float, dict[str, torch.Tensor]]:
    """The first step's loss and gradients, clipped as the spec says."""
    held = {name: value.clone().requires_grad_() for name, value in beginning().items()}
    loss = reference_loss(held, batches()[0], slots)
    loss.backward()
    grads = {name: value.grad for name, value in held.items() if value.grad is not None}
    norm = torch.cat([grad.flatten() for grad in grads.values()]).norm().item()
    return loss.item(), layered({n: grad * min(1.0, 0.5 / norm) for n, grad in grads.items()})


def test_one_device_takes_the_step_of_plain_pytorch() -> None:
    cases = [
        Case(f"{block} {way}", moe_spec(block, *WAYS[way]), "1")
        for block in ("moe", "capacity_moe")
        for way in ("plain", "both")
    ]
    for name, outcome in run_cases(cases, layered(beginning()), batches(), processes=1).items():
        loss, grads = reference_gradients(SLOTS if name.startswith("capacity") else 0)
        assert abs(outcome.told.losses[0] / loss - 1) < CLOSE
        found = {grad: outcome.first[f"{grad}#m"] / 0.1 for grad in grads}
        assert furthest(found, grads) < CLOSE, name


# Experts divided over devices.

EXCHANGED = ("shard batch over (data, expert)", "shard experts over expert")
APART = ("shard batch over data", "shard experts over tensor")
PLANS = {
    "exchanged": ("data=2,expert=2", EXCHANGED),
    "an expert each": ("data=1,expert=4", EXCHANGED),
    "tokens whole": ("expert=2", EXCHANGED[1:]),
    "on the tensor axis": ("data=2,tensor=2", APART),
    "on the data axis": ("data=2", ("shard batch over data", "shard experts over data")),
    "on two axes": ("data=2,tensor=2", (APART[0], "shard experts over (data, tensor)")),
    "with ffn": ("data=1,expert=2,tensor=2", (*EXCHANGED, "shard (ffn, vocab) over tensor")),
    "with zero": ("data=2,expert=2", (*EXCHANGED, "zero 3 over data")),
    "with gradients divided": ("data=2,expert=2", (*EXCHANGED, "zero 2 over data")),
    "sequences divided": ("context=2", ("shard seq over context",)),
    "on the context axis": ("context=2", ("shard seq over context", "shard experts over context")),
    "with context": ("data=1,expert=2,context=2", (*EXCHANGED, "shard seq over context")),
    "with sequence": (
        "data=1,expert=2,tensor=2",
        (*EXCHANGED, "shard ffn over tensor", "shard seq over tensor elsewhere"),
    ),
    "all at once": (
        "data=2,expert=2,tensor=2",
        (*EXCHANGED, "shard ffn over tensor", "recompute body.*", "microbatches: 2"),
    ),
}


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("block", ["moe", "capacity_moe"])
def test_divided_experts_take_the_step_of_one_device(block: str, plan: str) -> None:
    mesh, lines = PLANS[plan]
    found = evaluated_step(moe_spec(block, *lines), mesh)
    assert furthest(found, evaluated_step(moe_spec(block), "1")) < CLOSE


@pytest.mark.parametrize("block", ["moe", "capacity_moe"])
def test_processes_exchange_rows_and_take_the_step_of_plain_pytorch(block: str) -> None:
    names = ("exchanged", "on the tensor axis", "with zero", "with ffn", "with context")
    cases = [Case(name, moe_spec(block, *PLANS[name][1]), PLANS[name][0]) for name in names]
    loss, grads = reference_gradients(SLOTS if block == "capacity_moe" else 0)
    for name, outcome in run_cases(cases, layered(beginning()), batches()).items():
        assert abs(outcome.told.losses[0] / loss - 1) < CLOSE
        found = {grad: outcome.first[f"{grad}#m"] / 0.1 for grad in grads}
        assert furthest(found, grads) < CLOSE, name
        kinds = {each.kind for each in outcome.plan.collectives if "moe" in each.path}
        assert ("all_to_all" in kinds) == (name != "on the tensor axis")
        gate = next(p for p in outcome.plan.program.parameters if p.name == "body.moe.gate")
        assert gate.type.axes_of("experts"), name


def test_what_is_exchanged_is_the_bound() -> None:
    """Rows move with room for all choices, by layout with slots with room for these alone."""
    rows = {"moe": SEQ * CHOICES * 2, "capacity_moe": EXPERTS * SLOTS}
    for block, count in rows.items():
        spec, _, _ = load("moe.fllm", text=moe_spec(block, *EXCHANGED))
        assert spec is not None
        cx = Context(parse_mesh("data=2,expert=2", Mesh())[0], lambda _: None)
        program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
        moved = [
            program.sizes.local_elements(function.types[op.operands[0]])
            for function in program.functions
            for op in function.ops
            if op.kind == "all_to_all" and "embed" in function.types[op.operands[0]].names
        ]
        assert moved
        assert set(moved) == {BATCH // 4 * count * EMBED}


def test_experts_that_an_axis_does_not_divide_are_told() -> None:
    with pytest.raises(DiagnosticError) as caught:
        evaluated_step(moe_spec("moe", "shard experts over expert"), "expert=3")
    (found,) = caught.value.diagnostics
    assert isinstance(found, Indivisible)
    assert (found.dim, found.axis, found.size) == ("experts", "expert", EXPERTS)
