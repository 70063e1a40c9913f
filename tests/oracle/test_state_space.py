"""Models with a state instead of attention, against transformers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.oracle.parity import judge, small

pytest.importorskip("transformers")

MAMBA2 = {
    "batch": 2, "seq": 11, "vocab": 257, "embed": 12, "heads": 6, "head_dim": 4, "groups": 2,
    "state": 5, "layers": 2,
}  # fmt: skip


def mamba2_mixer(held: dict[str, Tensor], at: str, sizes: dict[str, int]) -> dict[str, Tensor]:
    """A mixer's tensors by our names: theirs are projected together, and slid over together."""
    heads, dim, groups, state = (sizes[n] for n in ("heads", "head_dim", "groups", "state"))
    widths = (heads * dim, heads * dim, groups * state, groups * state, heads)
    inner, keys = (heads, dim), (groups, state)
    shapes = (inner, inner, keys, keys, (heads,))
    names = ("gate", "value", "key", "query", "step")
    found = {
        name: part.T.unflatten(1, shape)
        for name, part, shape in zip(
            names, held[f"{at}.in_proj.weight"].split(widths), shapes, strict=True
        )
    }
    for what, whole in (
        ("taps", held[f"{at}.conv1d.weight"][:, 0]),
        ("bias", held[f"{at}.conv1d.bias"]),
    ):
        for name, part, shape in zip(
            names[1:4], whole.split(widths[1:4]), shapes[1:4], strict=True
        ):
            found[f"{name}_{what}"] = part.unflatten(0, shape)
    return {
        **found,
        "step_bias": held[f"{at}.dt_bias"],
        "log_rate": held[f"{at}.A_log"],
        "skip": held[f"{at}.D"],
        "scale": held[f"{at}.norm.weight"].unflatten(0, inner),
        "out": held[f"{at}.out_proj.weight"].T.unflatten(0, inner),
    }


@pytest.mark.long
def test_mamba2() -> None:
    from transformers import Mamba2Config, Mamba2ForCausalLM

    torch.manual_seed(0)
    sizes = MAMBA2
    config = Mamba2Config(
        vocab_size=sizes["vocab"],
        hidden_size=sizes["embed"],
        num_heads=sizes["heads"],
        head_dim=sizes["head_dim"],
        n_groups=sizes["groups"],
        state_size=sizes["state"],
        num_hidden_layers=sizes["layers"],
        expand=2,
        conv_kernel=4,
        chunk_size=4,
    )
    theirs = Mamba2ForCausalLM(config).double()
    held = dict(theirs.named_parameters())

    def names() -> dict[str, Tensor]:
        found = {
            "embedding": held["backbone.embeddings.weight"],
            "head": held["lm_head.weight"].T,
            "final_norm.scale": held["backbone.norm_f.weight"],
        }
        for layer in range(sizes["layers"]):
            at = f"backbone.layers.{layer}"
            found[f"body.{layer}.mixer_norm.scale"] = held[f"{at}.norm.weight"]
            mixer = mamba2_mixer(held, f"{at}.mixer", sizes)
            found |= {f"body.{layer}.mixer.{name}": value for name, value in mixer.items()}
        return found

    judge(small("specs/models/mamba2.fllm", sizes), theirs, names)
