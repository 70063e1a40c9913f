"""Every mesh and every number of microbatches computes the reference's training step."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from tests.oracle.compiled import Case, Outcome, run_cases
from tests.oracle.reference import Batch, Recipe, Shape, Step, cosine, gpt, llama, relative, train
from tests.oracle.small_specs import RECOMPUTED, SEQUENCE, STORED, small_spec

MESHES = ("1", "2x1", "1x2", "2x2", "4x1", "1x4")
MICROBATCHES = (1, 2, 4)
MORE = (
    ("2x2", STORED),
    ("4x1", STORED),
    ("1", RECOMPUTED),
    ("1x2", RECOMPUTED),
    ("1x2", SEQUENCE),
    ("2x2", f"{STORED}\n{SEQUENCE}"),
)
TOLERANCE = {"f64": 1e-10, "f32": 1e-5}
VOCAB, EMBED, HEAD_DIM, FFN, LAYERS, BATCH, SEQ = 256, 16, 6, 12, 3, 16, 6
HEADS, KV_HEADS = 8, 4
BETA1, EPS = 0.9, 1e-4
"""AdamW's. With a smaller epsilon it would magnify what rounding leaves of NO_GRADIENT in fp32."""
RATE = partial(cosine, peak=1e-2, floor=1e-3, warmup=2, steps=5)

LLAMA = {
    "embedding": (VOCAB, EMBED),
    "head": (EMBED, VOCAB),
    "final_norm.scale": (EMBED,),
    "body.attn_norm.scale": (LAYERS, EMBED),
    "body.mlp_norm.scale": (LAYERS, EMBED),
    "body.attn.wq": (LAYERS, EMBED, HEADS, HEAD_DIM),
    "body.attn.wk": (LAYERS, EMBED, KV_HEADS, HEAD_DIM),
    "body.attn.wv": (LAYERS, EMBED, KV_HEADS, HEAD_DIM),
    "body.attn.wo": (LAYERS, HEADS, HEAD_DIM, EMBED),
    "body.mlp.gate": (LAYERS, EMBED, FFN),
    "body.mlp.up": (LAYERS, EMBED, FFN),
    "body.mlp.down": (LAYERS, FFN, EMBED),
}
GPT = {
    "embedding": (VOCAB, EMBED),
    "place": (SEQ, EMBED),
    "final_norm.scale": (EMBED,),
    "final_norm.bias": (EMBED,),
    **{f"body.{n}_norm.{p}": (LAYERS, EMBED) for n in ("attn", "mlp") for p in ("scale", "bias")},
    **{f"body.attn.w{p}": (LAYERS, EMBED, 4, 4) for p in "qkv"},
    **{f"body.attn.b{p}": (LAYERS, 4, 4) for p in "qkv"},
    "body.attn.wo": (LAYERS, 4, 4, EMBED),
    "body.attn.bo": (LAYERS, EMBED),
    "body.mlp.up": (LAYERS, EMBED, FFN),
    "body.mlp.up_bias": (LAYERS, FFN),
    "body.mlp.down": (LAYERS, FFN, EMBED),
    "body.mlp.down_bias": (LAYERS, EMBED),
}
NO_GRADIENT = ("body.attn.bk",)
"""A key's bias shifts all scores of a query alike: its gradient is zero, and rounding is what one
sees. It is measured against the norm of the whole gradient."""


def recipe(model: str) -> Recipe:
    """What `small_specs` says, in the reference's words."""
    if model == "llama":
        plain = frozenset(n for n in LLAMA if n.endswith(".scale")) | {"embedding"}
        z_loss, clip = 1e-3, 0.5
    else:
        plain = frozenset(n for n in GPT if n.endswith((".scale", ".bias")))
        z_loss, clip = 0.0, 0.0
    return Recipe(z_loss, (BETA1, 0.95), EPS, 0.1, plain, clip, RATE)


def beginning(model: str) -> dict[str, Tensor]:
    """Random parameters, biases and scales too; representable in fp32."""
    generator = torch.Generator().manual_seed(3)
    shapes = LLAMA if model == "llama" else GPT
    drawn = {n: torch.randn(s, generator=generator) * 0.3 for n, s in shapes.items()}
    return {n: (v + 1 if n.endswith(".scale") else v).double() for n, v in drawn.items()}


def batches() -> list[Batch]:
    """Three batches; the weights differ, and some are zero, so no mean of means will do."""
    torch.manual_seed(5)
    shape = (BATCH, SEQ)
    found: list[Batch] = []
    for _ in range(3):
        weights = torch.rand(shape) * (torch.rand(shape) < 0.7)
        weights[BATCH // 2 :] *= 0.25
        found.append(Batch(torch.randint(VOCAB, shape), torch.randint(VOCAB, shape), weights))
    return found


def layers(params: dict[str, Tensor]) -> dict[str, Tensor]:
    """The parameters, each layer of a stack under its own name."""
    found: dict[str, Tensor] = {}
    for name, value in params.items():
        stack, _, rest = name.partition(".")
        if stack != "body":
            found[name] = value
            continue
        for layer, part in enumerate(value):
            found[f"body.{layer}.{rest}"] = part.contiguous()
    return found


def stacked(found: dict[str, Tensor], name: str, state: str = "") -> Tensor:
    """All layers of a parameter, or of a state of it."""
    stack, _, rest = name.partition(".")
    if stack != "body":
        return found[name + state]
    return torch.stack([found[f"body.{layer}.{rest}{state}"] for layer in range(LAYERS)])


def errors(found: Outcome, steps: list[Step]) -> dict[str, float]:
    """The relative error of everything that was computed."""
    told = {
        f"loss {i}": abs(found.told.losses[i] / step.loss - 1) for i, step in enumerate(steps)
    } | {
        f"norm {i}": abs(found.told.grad_norms[i] / step.grad_norm - 1)
        for i, step in enumerate(steps)
    }
    first, last = steps[0], steps[-1]
    whole = torch.cat([grad.flatten() for grad in first.grads.values()]).norm().item()
    for name, expected in first.grads.items():
        gradient = stacked(found.first, name, "#m").reshape(expected.shape) / (1 - BETA1)
        if name in NO_GRADIENT:
            told[f"gradient of {name}"] = (gradient - expected).norm().item() / whole
        else:
            told[f"gradient of {name}"] = relative(gradient, expected)
            for state, values in (("m", last.first), ("v", last.second)):
                given = stacked(found.last, name, f"#{state}").reshape(expected.shape)
                told[f"{name}#{state}"] = relative(given, values[name])
        given = stacked(found.last, name).reshape(expected.shape)
        told[name] = relative(given, last.params[name])
    return told


def check_counts(found: Outcome, steps: int) -> None:
    """Collectives are those of the plan, in number and in bytes; so is the arena."""
    planned = {
        c.site: (c.calls * steps, c.bytes) for c in found.plan.collectives if c.entry == "train"
    }
    assert found.told.counted == planned
    trained = [c for c in found.plan.collectives if c.entry == "train"]
    assert found.told.copied == sum(c.calls * c.copied for c in trained) * steps
    assert found.told.arena_bytes == found.plan.arena_bytes


FROZEN = """
adapter part on llama3_8b {
  freeze embedding
  freeze body.*.attn.{wq, wk}
  freeze body.*.mlp_norm
  freeze head
}

train run: part"""


def test_frozen_parameters_as_in_pytorch() -> None:
    """What is frozen stays, has no state, and leaves the others' steps as PyTorch has them."""
    names = ("embedding", "head", "body.attn.wq", "body.attn.wk", "body.mlp_norm.scale")
    own = recipe("llama")._replace(frozen=frozenset(names))
    given = batches()
    doubled = [b._replace(weights=b.weights.double()) for b in given]
    function = partial(llama, shape=Shape(eps=1e-5, theta=500_000.0))
    expected = train(function, beginning("llama"), doubled, own)
    text = small_spec("llama", "f64", 2, STORED).replace("\ntrain run: llama3_8b", FROZEN)
    cases = [Case(mesh, text, mesh) for mesh in ("1", "2x2")]
    for outcome in run_cases(cases, layers(beginning("llama")), given).values():
        assert not any(name.partition("#")[0] in names[:2] for name in outcome.first)
        for name in names:
            assert torch.equal(stacked(outcome.last, name), beginning("llama")[name])
        worst = {w: e for w, e in errors(outcome, expected).items() if not e <= 1e-11}
        assert worst == {}


ROWS = {
    "llama": """
adapter part on llama3_8b {
  freeze embedding {
    rows: (0, 100)
  }
  freeze head
  tune head {
    rows: (4, 16)
  }
  freeze body.*.attn.wq {
    rows: (2, 5)
  }
  freeze body.*.mlp.down {
    rows: (4, 8)
  }
  freeze body.*.mlp_norm {
    rows: (0, 7)
  }
}

train run: part""",
    "gpt": """
adapter part on gpt2 {
  freeze embedding {
    rows: (128, 256)
  }
  freeze place {
    rows: (0, 2)
  }
  freeze body.*.attn.bv {
    rows: (1, 2)
  }
}

train run: part""",
}
LAYER = slice(None)
FROZEN_ROWS = {
    "llama": {
        "embedding": (slice(0, 100),),
        "head": (slice(0, 4),),
        "body.attn.wq": (LAYER, slice(2, 5)),
        "body.mlp.down": (LAYER, slice(4, 8)),
        "body.mlp_norm.scale": (LAYER, slice(0, 7)),
    },
    "gpt": {
        "embedding": (slice(128, 256),),
        "place": (slice(0, 2),),
        "body.attn.bv": (LAYER, slice(1, 2)),
    },
}


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_frozen_rows_as_in_pytorch_with_their_gradient_zeroed(model: str) -> None:
    own = recipe(model)._replace(frozen_rows=FROZEN_ROWS[model])
    given = batches()
    doubled = [b._replace(weights=b.weights.double()) for b in given]
    function = partial(llama if model == "llama" else gpt, shape=Shape(eps=1e-5, theta=500_000.0))
    expected = train(function, beginning(model), doubled, own)
    name = {"llama": "llama3_8b", "gpt": "gpt2"}[model]
    text = small_spec(model, "f64", 2).replace(f"\ntrain run: {name}", ROWS[model])
    cases = [Case(mesh, text, mesh) for mesh in ("1", "2x2")]
    for outcome in run_cases(cases, layers(beginning(model)), given).values():
        worst = {w: e for w, e in errors(outcome, expected).items() if not e <= 1e-11}
        assert worst == {}
        for held, rows in FROZEN_ROWS[model].items():
            left = stacked(outcome.last, held).reshape(beginning(model)[held].shape)
            assert torch.equal(left[rows], beginning(model)[held][rows])


@pytest.mark.parametrize("dtype", ["f64", pytest.param("f32", marks=pytest.mark.long)])
@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_same_numbers(model: str, dtype: str) -> None:
    function = partial(llama if model == "llama" else gpt, shape=Shape(eps=1e-5, theta=500_000.0))
    given = batches()
    doubled = [b._replace(weights=b.weights.double()) for b in given]
    expected = train(function, beginning(model), doubled, recipe(model))
    cases = [
        Case(f"{mesh} in {count}", small_spec(model, dtype, count), mesh)
        for mesh in MESHES
        for count in MICROBATCHES
    ]
    cases += [
        Case(f"{mesh} with {more}", small_spec(model, dtype, 2, more), mesh) for mesh, more in MORE
    ]
    outcomes = run_cases(cases, layers(beginning(model)), given)
    found = {name: errors(outcome, expected) for name, outcome in outcomes.items()}
    worst = {
        f"{name}: {what}": error
        for name, told in found.items()
        for what, error in told.items()
        if not error <= TOLERANCE[dtype]
    }
    assert worst == {}
    for outcome in outcomes.values():
        check_counts(outcome, len(given))
