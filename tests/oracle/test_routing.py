"""Ways to route tokens to experts: numbers of `transformers`, gradients of JAX, any mesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DeepseekV3Config, GptOssConfig, MixtralConfig, Qwen2MoeConfig
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MoE
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock
from transformers.models.qwen2_moe.modeling_qwen2_moe import Qwen2MoeSparseMoeBlock

from fllmc.frontend import load
from fllmc.ir.evaluate import evaluate
from fllmc.ir.render import render
from tests.codegen.running import check, compiled
from tests.oracle.routing_specs import CHOICES, EMBED, EXPERTS, FFN, ROUTING, SHARED, routing_spec
from tests.oracle.test_experts import furthest
from tests.oracle.test_gradients_against_jax import agrees_with_jax
from tests.specs.evaluated import evaluated_step
from tests.specs.random_specs import Drawn

jax = pytest.importorskip("jax")

Values = Mapping[str, np.ndarray]
EXACT, CLOSE = 1e-12, 1e-11
SIZES: dict[str, Any] = {
    "hidden_size": EMBED, "intermediate_size": FFN, "moe_intermediate_size": FFN,
    "num_experts_per_tok": CHOICES, "num_local_experts": EXPERTS, "num_experts": EXPERTS,
    "hidden_act": "silu", "experts_implementation": "eager",
}  # fmt: skip
SHARED_SIZES: dict[str, Any] = {**SIZES, "moe_intermediate_size": SHARED}
"""Where the shared expert's width is that of all."""


def joined(values: Values) -> np.ndarray:
    """Gate and up, one behind the other, as [experts, out, in]."""
    both = np.concatenate([values["mlp.gate"], values["mlp.up"]], axis=-1)
    return both.swapaxes(1, 2)


def experts_of(values: Values) -> dict[str, np.ndarray]:
    """Router and experts by the names of `transformers`."""
    return {
        "gate.weight": values["router"].T,
        "experts.gate_up_proj": joined(values),
        "experts.down_proj": values["mlp.down"].swapaxes(1, 2),
    }


def shared_of(values: Values, name: str) -> dict[str, np.ndarray]:
    """A shared expert by the names of `transformers`."""
    return {f"{name}.{n}_proj.weight": values[f"shared.{n}"].T for n in ("gate", "up", "down")}


def mixtral(values: Values) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    return MixtralSparseMoeBlock(MixtralConfig(**SIZES)), experts_of(values)


def qwen2_moe(values: Values) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    config = Qwen2MoeConfig(**SIZES, shared_expert_intermediate_size=SHARED, norm_topk_prob=False)
    gate = {"shared_expert_gate.weight": values["shared_gate"][None]}
    return Qwen2MoeSparseMoeBlock(config), {
        **experts_of(values), **shared_of(values, "shared_expert"), **gate,
    }  # fmt: skip


def deepseek_v3(values: Values) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    config = DeepseekV3Config(
        **SHARED_SIZES, n_routed_experts=EXPERTS, n_shared_experts=1,
        n_group=2, topk_group=1, routed_scaling_factor=2.5, norm_topk_prob=True,
    )  # fmt: skip
    module = DeepseekV3MoE(config)
    module.experts.gate_up_proj = torch.nn.Parameter(torch.empty(EXPERTS, 2 * FFN, EMBED))
    module.experts.down_proj = torch.nn.Parameter(torch.empty(EXPERTS, EMBED, FFN))
    bias = {"gate.e_score_correction_bias": values["bias"]}
    return module, {**experts_of(values), **shared_of(values, "shared_experts"), **bias}


def gpt_oss(values: Values) -> tuple[torch.nn.Module, dict[str, np.ndarray]]:
    config = GptOssConfig(**SIZES, swiglu_limit=0.2, swiglu_alpha=1.702)
    found = {"router.weight": values["router"].T, "router.bias": values["router_bias"]}
    for end in ("", "_bias"):
        pair = np.stack([values[f"gate{end}"], values[f"up{end}"]], axis=-1)
        found[f"experts.gate_up_proj{end}"] = pair.reshape(*pair.shape[:-2], 2 * FFN)
        found[f"experts.down_proj{end}"] = values[f"down{end}"]
    return GptOssMLP(config), found


REFERENCES: Mapping[str, Callable[[Values], tuple[torch.nn.Module, dict[str, np.ndarray]]]] = {
    "mixtral": mixtral,
    "qwen2_moe": qwen2_moe,
    "deepseek_v3": deepseek_v3,
    "gpt_oss": gpt_oss,
}


@pytest.fixture
def in_double(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `transformers` computes in 32 bits whatever it is given, as routers do, is in 64."""
    for name in ("float", "float32"):
        monkeypatch.setattr(torch, name, torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)


@pytest.mark.usefixtures("in_double")
@pytest.mark.parametrize("way", REFERENCES)
def test_a_block_computes_what_transformers_does(way: str) -> None:
    spec, found, sources = load("routing.fllm", text=routing_spec(ROUTING[way]))
    assert spec is not None, render(found, sources)
    block = spec.program.function("routed_mlp")
    rng = np.random.default_rng(0)
    values = {
        given.name: rng.standard_normal(spec.program.sizes.shape(kind))
        for given, kind in zip(block.inputs, block.types, strict=False)
    }
    module, state = REFERENCES[way](values)
    module.double().load_state_dict({name: torch.tensor(v) for name, v in state.items()})
    wanted = module(torch.tensor(values["x"]))
    wanted = (wanted[0] if isinstance(wanted, tuple) else wanted).detach().numpy()
    out = evaluate(spec.program, "routed_mlp", values)["out"]
    assert np.linalg.norm(out - wanted) < EXACT * np.linalg.norm(wanted)


@pytest.mark.parametrize("way", ROUTING)
def test_gradients_are_those_of_jax(way: str) -> None:
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    agrees_with_jax(Drawn(routing_spec(ROUTING[way])))
    jax.config.update("jax_enable_x64", before)


@pytest.mark.parametrize("way", ROUTING)
def test_the_compiled_step_is_the_evaluators(way: str) -> None:
    check(compiled(routing_spec(ROUTING[way])))


PLANS = {
    "micro-batches": ("1", ("microbatches: 4", "recompute body.*")),
    "data, expert and tensor": (
        "data=2,expert=2,tensor=2",
        (
            "shard batch over (data, expert)",
            "shard experts over expert",
            "shard (ffn, shared_ffn, vocab) over tensor",
            "microbatches: 2",
        ),
    ),
    "experts on the tensor axis": (
        "data=2,tensor=4",
        ("shard batch over data", "shard (experts, vocab) over tensor", "zero 3 over data"),
    ),
    "stages": (
        "pipe=2,data=2",
        ("shard layers over pipe", "shard batch over data", "microbatches: 2"),
    ),
}


def takes_the_step_of_one_device(way: str, plan: str) -> None:
    mesh, lines = PLANS[plan]
    found = evaluated_step(routing_spec(ROUTING[way], *lines), mesh)
    assert furthest(found, evaluated_step(routing_spec(ROUTING[way]), "1")) < CLOSE


@pytest.mark.parametrize("way", ROUTING)
def test_experts_divided_take_the_step_of_one_device(way: str) -> None:
    takes_the_step_of_one_device(way, "data, expert and tensor")


@pytest.mark.parametrize("plan", PLANS)
def test_groups_and_biases_are_the_same_on_every_mesh(plan: str) -> None:
    takes_the_step_of_one_device("deepseek_v3", plan)


@pytest.mark.long
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("way", ROUTING)
def test_every_mesh_takes_the_step_of_one_device(way: str, plan: str) -> None:
    takes_the_step_of_one_device(way, plan)
