"""Small transformers in plain PyTorch, to judge compiled steps by.

Nothing here knows the compiler. Models are functions of a dict of tensors under the names that the
specs give them; those of a stack hold all layers, first dim first. Gradients are autograd's, and
the optimizer and the clipping are PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Params = Mapping[str, Tensor]
Model = Callable[[Params, Tensor], Tensor]


class Batch(NamedTuple):
    """Tokens and targets i64 `[batch, seq]`, and the weight of each target `[batch, seq]`."""

    tokens: Tensor
    targets: Tensor
    weights: Tensor


class Recipe(NamedTuple):
    """Everything about the training step but the model."""

    z_loss: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    no_decay: frozenset[str] = frozenset()
    clip: float = 0.0
    rate: Callable[[int], float] = lambda step: 1e-3
    frozen: frozenset[str] = frozenset()
    frozen_rows: Mapping[str, tuple[slice, ...]] = {}
    """By parameter, an index of what of it is frozen: its gradient is zero, and it stays."""


class Step(NamedTuple):
    """One step: the loss before it, the norm before clipping, and what it left."""

    loss: float
    grad_norm: float
    grads: dict[str, Tensor]
    """After clipping."""
    params: dict[str, Tensor]
    first: dict[str, Tensor]
    """AdamW's first moments."""
    second: dict[str, Tensor]


class Shape(NamedTuple):
    """What the tensors alone don't tell. `theta` is the rotary base, `eps` that of the norms."""

    eps: float = 1e-5
    theta: float = 10_000.0


def rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Zhang and Sennrich 2019, over the last dim."""
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale


def layer_norm(x: Tensor, scale: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Ba, Kiros and Hinton 2016, over the last dim; the variance is the biased one."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * scale + bias


def gelu(x: Tensor) -> Tensor:
    """Hendrycks and Gimpel 2016, the approximation by tanh."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def rotate(x: Tensor, theta: float) -> Tensor:
    """Su et al. 2021 on `[batch, seq, heads, dim]`: element i turns with element i + dim/2."""
    half = x.shape[-1] // 2
    positions = torch.arange(x.shape[1], dtype=torch.float64)
    speeds = theta ** (-torch.arange(half, dtype=torch.float64) / half)
    turn = torch.polar(torch.ones((), dtype=torch.float64), positions[:, None] * speeds)[:, None]
    cos, sin = turn.real.to(x.dtype), turn.imag.to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of `[batch, seq, heads, dim]`, query head h on key head h // group."""
    group = q.shape[2] // k.shape[2]
    k, v = (x.repeat_interleave(group, dim=2) for x in (k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) / math.sqrt(q.shape[-1])
    seq = q.shape[1]
    later = torch.ones(seq, seq, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(later, -math.inf).softmax(-1)
    return torch.einsum("bhqk,bkhd->bqhd", weights, v)


def llama(p: Params, tokens: Tensor, shape: Shape) -> Tensor:
    """Logits `[batch, seq, vocab]` of a Llama (Touvron et al. 2023) with an untied head."""
    x = p["embedding"][tokens]
    for i in range(p["body.attn.wq"].shape[0]):
        h = rms_norm(x, p["body.attn_norm.scale"][i], shape.eps)
        q, k, v = (
            torch.einsum("bse,ehd->bshd", h, p[f"body.attn.{w}"][i]) for w in ("wq", "wk", "wv")
        )
        mixed = attend(rotate(q, shape.theta), rotate(k, shape.theta), v)
        x = x + torch.einsum("bshd,hde->bse", mixed, p["body.attn.wo"][i])
        h = rms_norm(x, p["body.mlp_norm.scale"][i], shape.eps)
        gate = h @ p["body.mlp.gate"][i]
        x = x + (gate * torch.sigmoid(gate) * (h @ p["body.mlp.up"][i])) @ p["body.mlp.down"][i]
    return rms_norm(x, p["final_norm.scale"], shape.eps) @ p["head"]


def gpt(p: Params, tokens: Tensor, shape: Shape) -> Tensor:
    """Logits `[batch, seq, vocab]` of a GPT-2 (Radford et al. 2019), its head tied."""
    x = p["embedding"][tokens] + p["place"][: tokens.shape[1]]
    for i in range(p["body.attn.wq"].shape[0]):

        def of(name: str, i: int = i) -> Tensor:
            return p[f"body.{name}"][i]

        h = layer_norm(x, of("attn_norm.scale"), of("attn_norm.bias"), shape.eps)
        q, k, v = (
            torch.einsum("bse,ehd->bshd", h, of(f"attn.w{w}")) + of(f"attn.b{w}") for w in "qkv"
        )
        x = x + torch.einsum("bshd,hde->bse", attend(q, k, v), of("attn.wo")) + of("attn.bo")
        h = layer_norm(x, of("mlp_norm.scale"), of("mlp_norm.bias"), shape.eps)
        x = x + gelu(h @ of("mlp.up") + of("mlp.up_bias")) @ of("mlp.down") + of("mlp.down_bias")
    return layer_norm(x, p["final_norm.scale"], p["final_norm.bias"], shape.eps) @ p["embedding"].T


def loss(logits: Tensor, batch: Batch, z_loss: float = 0.0) -> Tensor:
    """The weighted mean of the negative log-likelihood, plus `z_loss` times that of log(Z)^2."""
    log_z = logits.logsumexp(-1)
    nll = log_z - logits.gather(-1, batch.targets[..., None])[..., 0]
    weights = batch.weights.to(logits.dtype)
    return ((nll + z_loss * log_z.square()) * weights).sum() / weights.sum()


def cosine(step: int, peak: float, floor: float, warmup: int, steps: int) -> float:
    """Rate at `step` (from 1): linear up to `peak`, then half a cosine down to `floor`."""
    if step <= warmup:
        return peak * step / warmup
    done = (step - warmup) / (steps - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * done))


def train(model: Model, params: Params, batches: Sequence[Batch], recipe: Recipe) -> list[Step]:
    """One step of AdamW (Loshchilov and Hutter 2019) on each batch."""
    leaves = {
        name: value.clone().requires_grad_(name not in recipe.frozen)
        for name, value in params.items()
    }
    plain = [value for name, value in leaves.items() if name in recipe.no_decay]
    decayed = [value for name, value in leaves.items() if name not in recipe.no_decay]
    groups = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(
        [group for group in groups if group["params"]],
        betas=recipe.betas,
        eps=recipe.eps,
        weight_decay=recipe.weight_decay,
    )
    return [
        _step(model, leaves, batch, recipe, optimizer, number)
        for number, batch in enumerate(batches, 1)
    ]


def _step(
    model: Model,
    leaves: dict[str, Tensor],
    batch: Batch,
    recipe: Recipe,
    optimizer: torch.optim.Optimizer,
    number: int,
) -> Step:
    optimizer.zero_grad()
    value = loss(model(leaves, batch.tokens), batch, recipe.z_loss)
    value.backward()
    for name, rows in recipe.frozen_rows.items():
        if (grad := leaves[name].grad) is not None:
            grad[rows] = 0.0
    norm = torch.nn.utils.clip_grad_norm_(leaves.values(), recipe.clip or math.inf)
    grads = {name: leaf.grad.clone() for name, leaf in leaves.items() if leaf.grad is not None}
    for group in optimizer.param_groups:
        group["lr"] = recipe.rate(number)
    kept = {name: leaves[name].detach()[rows].clone() for name, rows in recipe.frozen_rows.items()}
    optimizer.step()
    with torch.no_grad():
        for name, rows in recipe.frozen_rows.items():
            leaves[name][rows] = kept[name]
    first, second = (
        {n: optimizer.state[leaf][key].clone() for n, leaf in leaves.items() if leaf.requires_grad}
        for key in ("exp_avg", "exp_avg_sq")
    )
    left = {name: leaf.detach().clone() for name, leaf in leaves.items()}
    return Step(value.item(), norm.item(), grads, left, first, second)


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected, in fp64."""
    difference = (found.double() - expected.double()).norm()
    return (difference / expected.double().norm().clamp_min(1e-300)).item()
