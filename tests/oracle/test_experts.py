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
from fllmc.ir.ops import ExchangeRows
from fllmc.ir.program import Op
from fllmc.ir.quantities import bytes_text
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.decisions import decisions
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place_errors import Indivisible
from fllmc.passes.runner import run_pipeline
from tests.oracle.compiled import Case, Outcome, run_cases
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
from tests.specs.evaluated import arguments, evaluated_step
from tests.specs.random_specs import Drawn

EXACT, CLOSE = 1e-12, 1e-11
WAYS = {
    "plain": ("microbatches: 1",),
    "micro-batches": ("microbatches: 4",),
    "recomputed": ("recompute body.*",),
    "both": ("microbatches: 2", "recompute *"),
}
BLOCKS = ("moe", "capacity_moe", "balanced_moe")
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
                gate, up = (token @ values[f"mlp.{name}"][expert] for name in ("gate", "up"))
                hidden = gate / (1 + np.exp(-gate)) * up
                weight = scores[expert] / scores[chosen].sum()
                out[sample, place] += weight * (hidden @ values["mlp.down"][expert])
    return out, dropped


@pytest.mark.parametrize("block", ["balanced_moe", "capacity_moe"])
def test_gradients_are_those_of_jax(block: str) -> None:
    jax = pytest.importorskip("jax")
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    agrees_with_jax(Drawn(moe_spec(block)))
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("way", WAYS)
def test_penalties_do_not_depend_on_the_schedule(way: str) -> None:
    plain = evaluated_step(moe_spec("balanced_moe"), "1")
    assert furthest(evaluated_step(moe_spec("balanced_moe", *WAYS[way]), "1"), plain) < EXACT
    assert furthest(evaluated_step(moe_spec("moe"), "1"), plain) > 1e-3


def test_penalties_are_trained_on_and_not_measured() -> None:
    cx = Context(Mesh(), lambda _: None)
    told: dict[str, dict[str, np.ndarray]] = {}
    for block in ("moe", "balanced_moe"):
        spec, _, _ = load("moe.fllm", text=moe_spec(block))
        assert spec is not None
        program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
        given = arguments(program)
        evaluation = program.function("evaluate")
        names = {each.name for each in evaluation.inputs}
        told[block] = {
            "evaluate": evaluate(program, "evaluate", {n: given[n] for n in names})["loss"],
            "train": evaluate(program, "train", given)["loss"],
        }
    assert told["moe"]["evaluate"] == told["balanced_moe"]["evaluate"]
    # Balanced or not, imbalance is at least near 1 in each layer, and squares are positive.
    assert told["balanced_moe"]["train"] > told["moe"]["train"] + 0.005 * LAYERS


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


def reference_loss(
    params: Mapping[str, torch.Tensor], batch: Batch, slots: int, balanced: bool
) -> torch.Tensor:
    """The loss in plain PyTorch, expert by expert, each over the tokens that chose it."""
    x = params["embedding"][batch.tokens]
    penalties = torch.zeros(BATCH, SEQ, dtype=torch.float64)
    for layer in range(LAYERS):
        own = {name: value[layer] for name, value in params.items() if name.startswith("body.")}
        scale = own["body.norm.scale"]
        normed = torch.nn.functional.rms_norm(x, (EMBED,), scale, 1e-5)
        router_logits = normed @ own["body.moe.router"]
        scores = router_logits.softmax(-1)
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
            gate, up, down = (
                own[f"body.moe.mlp.{name}"][expert] for name in ("gate", "up", "down")
            )
            rows = torch.nn.functional.silu(rows @ gate) * (rows @ up) @ down
            rows = rows * weights[sample, token, choice][:, None]
            total = total.index_put((sample, token), rows, accumulate=True)
        x = x + total
        used = torch.nn.functional.one_hot(chosen, EXPERTS).sum(2).double().mean(1) / CHOICES
        penalties = penalties + 0.01 * EXPERTS * (used * scores.mean(1)).sum(1, keepdim=True)
        penalties = penalties + 0.001 * router_logits.logsumexp(-1) ** 2
    logits = x @ params["head"]
    lse = logits.logsumexp(-1)
    picked = logits.gather(-1, batch.targets[..., None])[..., 0]
    losses = lse - picked + 0.1 * lse.square() + (penalties if balanced else 0.0)
    weights = batch.weights.double()
    return (losses * weights).sum() / weights.sum()


def reference_gradients(block: str) -> tuple[float, dict[str, torch.Tensor]]:
    """The first step's loss and gradients, clipped as the spec says."""
    slots = SLOTS if block == "capacity_moe" else 0
    held = {name: value.clone().requires_grad_() for name, value in beginning().items()}
    loss = reference_loss(held, batches()[0], slots, block == "balanced_moe")
    loss.backward()
    grads = {name: value.grad for name, value in held.items() if value.grad is not None}
    norm = torch.cat([grad.flatten() for grad in grads.values()]).norm().item()
    return loss.item(), layered({n: grad * min(1.0, 0.5 / norm) for n, grad in grads.items()})


def test_one_device_takes_the_step_of_plain_pytorch() -> None:
    cases = [
        Case(f"{block} {way}", moe_spec(block, *WAYS[way]), "1")
        for block in BLOCKS
        for way in ("plain", "both")
    ]
    for name, outcome in run_cases(cases, layered(beginning()), batches(), processes=1).items():
        loss, grads = reference_gradients(name.split()[0])
        assert abs(outcome.told.losses[0] / loss - 1) < CLOSE
        found = {grad: outcome.first[f"{grad}#m"] / 0.1 for grad in grads}
        assert furthest(found, grads) < CLOSE, name


# Experts divided over devices.

PADDED = "expert_rows: padded"
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
    "padded": ("data=2,expert=2", (*EXCHANGED, PADDED)),
    "experts on all axes": (
        "data=2,expert=2",
        (EXCHANGED[0], "shard experts over (data, expert)"),
    ),
    "tokens divided further": (
        "data=2,expert=2",
        ("shard batch over (expert, data)", EXCHANGED[1]),
    ),
    "padded with context": (
        "data=1,expert=2,context=2",
        (*EXCHANGED, "shard seq over context", PADDED),
    ),
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
@pytest.mark.parametrize("block", BLOCKS)
def test_divided_experts_take_the_step_of_one_device(block: str, plan: str) -> None:
    mesh, lines = PLANS[plan]
    found = evaluated_step(moe_spec(block, *lines), mesh)
    assert furthest(found, evaluated_step(moe_spec(block), "1")) < CLOSE


@pytest.mark.parametrize(
    "block", ["moe", "capacity_moe", pytest.param("balanced_moe", marks=pytest.mark.long)]
)
def test_processes_exchange_rows_and_take_the_step_of_plain_pytorch(block: str) -> None:
    names = ("exchanged", "padded", "on the tensor axis", "with zero", "with ffn", "with context")
    cases = [Case(name, moe_spec(block, *PLANS[name][1]), PLANS[name][0]) for name in names]
    loss, grads = reference_gradients(block)
    for name, outcome in run_cases(cases, layered(beginning()), batches()).items():
        assert abs(outcome.told.losses[0] / loss - 1) < CLOSE
        found = {grad: outcome.first[f"{grad}#m"] / 0.1 for grad in grads}
        assert furthest(found, grads) < CLOSE, name
        kinds = {each.kind for each in outcome.plan.collectives if "moe" in each.path}
        whole = block == "capacity_moe" or name == "padded"
        moves = "all_to_all" if whole else "exchange_rows"
        assert (moves in kinds) == (name != "on the tensor axis")
        assert whole or "all_to_all" not in kinds
        check_rows(outcome, len(batches()))
        gate = next(p for p in outcome.plan.program.parameters if p.name == "body.moe.mlp.gate")
        assert gate.type.axes_of("experts"), name


def check_rows(outcome: Outcome, steps: int) -> None:
    """Rows that are exchanged are those of the ranks' choices, there and back, within the bound."""
    program = outcome.plan.program
    there, back = 0, 0
    for each in outcome.plan.collectives:
        if each.kind != "exchange_rows" or each.entry != "train":
            continue
        op = program.function(each.function).ops[each.op]
        assert isinstance(op.attrs, ExchangeRows)
        told = [ragged[each.site] for ragged in outcome.ragged]
        assert all(calls == steps * each.calls for calls, _ in told)
        assert all(moved <= calls * each.bytes for calls, moved in told)
        total = sum(moved for _, moved in told)
        back += total if op.attrs.back else 0
        if not op.attrs.back:
            there += total
            assert total == sum(calls for calls, _ in told) * each.bytes
            kind = program.function(each.function).types[op.operands[0]]
            sequences, choices = BATCH * LAYERS, SEQ * CHOICES
            width = EMBED if "embed" in kind.names else 1
            copies = program.mesh.extent(a for a in ("tensor",) if program.mesh.has(a))
            assert total == steps * sequences * choices * width * 8 * copies
    assert there == back


def exchanges(op: Op) -> bool:
    """Whether an op moves rows to their experts."""
    return op.kind == "all_to_all" or (isinstance(op.attrs, ExchangeRows) and not op.attrs.back)


@pytest.mark.parametrize("rows", ["routed", "padded"])
def test_what_is_exchanged_is_planned(rows: str) -> None:
    """Packed rows, or all their room; by layout with slots room for these alone."""
    room = {"moe": SEQ * CHOICES * (2 if rows == "padded" else 1), "capacity_moe": EXPERTS * SLOTS}
    for block, count in room.items():
        spec, _, _ = load("moe.fllm", text=moe_spec(block, *EXCHANGED, f"expert_rows: {rows}"))
        assert spec is not None
        cx = Context(parse_mesh("data=2,expert=2", Mesh())[0], lambda _: None)
        program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
        moved = [
            program.sizes.local_elements(function.types[op.operands[0]])
            for function in program.functions
            for op in function.ops
            if exchanges(op) and "embed" in function.types[op.operands[0]].names
        ]
        assert moved
        assert set(moved) == {BATCH // 4 * count * EMBED}


def test_the_plan_says_what_is_moved_and_what_there_is_room_for() -> None:
    spec, _, _ = load("moe.fllm", text=moe_spec("moe", *EXCHANGED))
    assert spec is not None
    cx = Context(parse_mesh("data=2,expert=2", Mesh())[0], lambda _: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    told = decisions(program, spec.schedule)
    there, back = (found for found in told if found.choice.startswith("only rows"))
    packed = BATCH // 4 * SEQ * CHOICES * EMBED * 8
    assert (there.subject, back.subject) == ("moe.mlp.dispatch", "moe.mlp.combine")
    for found in (there, back):
        assert bytes_text(packed) in found.choice
        assert bytes_text(2 * packed) in found.rejected


def test_experts_that_an_axis_does_not_divide_are_told() -> None:
    with pytest.raises(DiagnosticError) as caught:
        evaluated_step(moe_spec("moe", "shard experts over expert"), "expert=3")
    (found,) = caught.value.diagnostics
    assert isinstance(found, Indivisible)
    assert (found.dim, found.axis, found.size) == ("experts", "expert", EXPERTS)
