"""The judge is judged: the reference models against the transformers library, in fp64."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.oracle.reference import Batch, Model, Shape, cosine, gpt, llama, loss, relative

VOCAB, EMBED, HEADS, KV_HEADS, FFN, LAYERS, SEQ = 24, 16, 4, 2, 40, 3, 10
HEAD_DIM = EMBED // HEADS
TOLERANCE = 1e-10


def _linear(weight: Tensor, *dims: int) -> Tensor:
    """A weight stored `[out, in]` as the map from in to out, its dims split."""
    return weight.T.reshape(*dims)


def _batch() -> Batch:
    tokens = torch.randint(VOCAB, (3, SEQ))
    return Batch(tokens, torch.randint(VOCAB, (3, SEQ)), torch.rand(3, SEQ, dtype=torch.float64))


def _drawn(model: torch.nn.Module) -> dict[str, Tensor]:
    """The model's tensors by name, all drawn at random: its own would be ones and zeros in part."""
    own: dict[str, Tensor] = dict(model.named_parameters())
    for weight in own.values():
        torch.nn.init.normal_(weight, std=0.3)
    return own


def _judge(theirs: torch.nn.Module, names: dict[str, Tensor], ours: Model) -> None:
    """Equal logits, and equal gradients of every one of their tensors through our names."""
    batch = _batch()
    expected = theirs(batch.tokens).logits
    found = ours(names, batch.tokens)
    assert relative(found, expected) < TOLERANCE
    leaves = dict(theirs.named_parameters())
    wanted = torch.autograd.grad(loss(expected, batch, 1e-3), list(leaves.values()))
    given = torch.autograd.grad(loss(found, batch, 1e-3), list(leaves.values()))
    errors = {
        name: (ours - theirs).norm().item() / max(theirs.norm().item(), 1e-3)
        for name, ours, theirs in zip(leaves, given, wanted, strict=True)
    }
    assert {name: error for name, error in errors.items() if error > TOLERANCE} == {}


@pytest.mark.long
def test_llama() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=EMBED,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        rms_norm_eps=1e-4,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
    )
    config._attn_implementation = "sdpa"
    theirs = LlamaForCausalLM(config).double()
    own = _drawn(theirs)

    def stacked(name: str, *dims: int) -> Tensor:
        weights = [own[f"model.layers.{i}.{name}.weight"] for i in range(LAYERS)]
        return torch.stack([_linear(w, *dims) if dims else w for w in weights])

    names = {
        "embedding": own["model.embed_tokens.weight"],
        "head": own["lm_head.weight"].T,
        "final_norm.scale": own["model.norm.weight"],
        "body.attn_norm.scale": stacked("input_layernorm"),
        "body.mlp_norm.scale": stacked("post_attention_layernorm"),
        "body.attn.wq": stacked("self_attn.q_proj", EMBED, HEADS, HEAD_DIM),
        "body.attn.wk": stacked("self_attn.k_proj", EMBED, KV_HEADS, HEAD_DIM),
        "body.attn.wv": stacked("self_attn.v_proj", EMBED, KV_HEADS, HEAD_DIM),
        "body.attn.wo": stacked("self_attn.o_proj", HEADS, HEAD_DIM, EMBED),
        "body.mlp.gate": stacked("mlp.gate_proj", EMBED, FFN),
        "body.mlp.up": stacked("mlp.up_proj", EMBED, FFN),
        "body.mlp.down": stacked("mlp.down_proj", FFN, EMBED),
    }
    _widen(theirs)
    _judge(theirs, names, partial(llama, shape=Shape(eps=1e-4, theta=500.0)))


def _widen(model: torch.nn.Module) -> None:
    """Theirs computes norms and angles in fp32 whatever the model's dtype; here in fp64."""
    exact = 500.0 ** -(torch.arange(0, HEAD_DIM, 2, dtype=torch.float64) / HEAD_DIM)
    for name, module in model.named_modules():
        if name.endswith("rotary_emb"):
            module.forward = partial(_angles, exact)
        elif isinstance(weight := getattr(module, "weight", None), Tensor) and "norm" in name:
            module.forward = partial(_norm, weight)


def _norm(weight: Tensor, x: Tensor) -> Tensor:
    return torch.nn.functional.rms_norm(x, (EMBED,), weight, 1e-4)


def _angles(speeds: Tensor, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    turned = position_ids[..., None].double() * speeds
    both = torch.cat([turned, turned], dim=-1)
    return both.cos(), both.sin()


@pytest.mark.long
def test_gpt() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB,
        n_positions=SEQ + 2,
        n_embd=EMBED,
        n_layer=LAYERS,
        n_head=HEADS,
        n_inner=FFN,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
    )
    config._attn_implementation = "sdpa"
    theirs = GPT2LMHeadModel(config).double()
    own = _drawn(theirs)

    def stacked(name: str, *dims: int) -> Tensor:
        whole = torch.stack([own[f"transformer.h.{i}.{name}"] for i in range(LAYERS)])
        return whole.reshape(LAYERS, *dims) if dims else whole

    # Their maps are stored [in, out], and queries, keys and values stand side by side.
    whole, shift = stacked("attn.c_attn.weight"), stacked("attn.c_attn.bias")
    names = {
        "embedding": own["transformer.wte.weight"],
        "place": own["transformer.wpe.weight"],
        "body.attn.wo": stacked("attn.c_proj.weight", HEADS, HEAD_DIM, EMBED),
        "body.attn.bo": stacked("attn.c_proj.bias"),
        "body.mlp.up": stacked("mlp.c_fc.weight"),
        "body.mlp.up_bias": stacked("mlp.c_fc.bias"),
        "body.mlp.down": stacked("mlp.c_proj.weight"),
        "body.mlp.down_bias": stacked("mlp.c_proj.bias"),
    }
    for i, part in enumerate("qkv"):
        columns = slice(i * EMBED, (i + 1) * EMBED)
        names[f"body.attn.w{part}"] = whole[..., columns].reshape(LAYERS, EMBED, HEADS, HEAD_DIM)
        names[f"body.attn.b{part}"] = shift[..., columns].reshape(LAYERS, HEADS, HEAD_DIM)
    for ours, theirs_name in (("attn_norm", "ln_1"), ("mlp_norm", "ln_2")):
        names[f"body.{ours}.scale"] = stacked(f"{theirs_name}.weight")
        names[f"body.{ours}.bias"] = stacked(f"{theirs_name}.bias")
    names["final_norm.scale"] = own["transformer.ln_f.weight"]
    names["final_norm.bias"] = own["transformer.ln_f.bias"]
    _judge(theirs, names, partial(gpt, shape=Shape(eps=1e-5)))


def test_cosine_meets_its_ends() -> None:
    rates = [cosine(step, peak=1.0, floor=0.1, warmup=4, steps=20) for step in range(1, 21)]
    assert rates[3] == 1.0 and rates[0] == 0.25
    assert rates[-1] == pytest.approx(0.1, abs=1e-12)
    assert rates[3:] == sorted(rates[3:], reverse=True)
