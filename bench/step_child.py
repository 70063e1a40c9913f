"""One contestant of `step_cpu.py` in a process of its own: a compiled plan, or plain PyTorch.

    step_child.py fllmc|eager|compile SIZE-JSON THREADS [foreach|fused|ARTIFACT]

It builds the same Llama with the same weights as the others, then answers lines of standard input:
`steps N` with N losses and times, `memory` with the growth of the resident set, `profile N` with
the time by kind of op. Each answer is a line of JSON.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fllmc.codegen.artifact import Artifact, read_artifact
from fllmc.runtime.executor import Executor

Size = dict[str, Any]
THETA, EPS = 500_000.0, 1e-5
RATE, BETAS, ADAM_EPS, DECAY, CLIP = 1e-3, (0.9, 0.95), 1e-8, 0.1, 1.0

# ---- What all contestants share: weights under the names of the spec, and batches.


def shapes(size: Size) -> dict[str, tuple[int, ...]]:
    """Parameters by name, as the spec lays them out."""
    layers, d, h, k = size["layers"], size["embed"], size["heads"], size["kv_heads"]
    n, ffn = d // h, size["ffn"]
    return {
        "embedding": (size["vocab"], d),
        "head": (d, size["vocab"]),
        "final_norm.scale": (d,),
        "body.attn_norm.scale": (layers, d),
        "body.mlp_norm.scale": (layers, d),
        "body.attn.wq": (layers, d, h, n),
        "body.attn.wk": (layers, d, k, n),
        "body.attn.wv": (layers, d, k, n),
        "body.attn.wo": (layers, h, n, d),
        "body.mlp.gate": (layers, d, ffn),
        "body.mlp.up": (layers, d, ffn),
        "body.mlp.down": (layers, ffn, d),
    }


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The initial value: ones for a scale, else normal; a function of the name alone."""
    if name.endswith("scale"):
        return torch.ones(shape)
    generator = torch.Generator().manual_seed(sum(name.encode()))
    return torch.randn(shape, generator=generator) * 0.02


def batches(size: Size) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless tokens and targets `[batch, seq]`: eight batches over and over."""
    generator = torch.Generator().manual_seed(1)
    shape = (8, size["batch"], size["seq"] + 1)
    # Squared, so that small tokens are frequent and there is something to learn.
    drawn = (torch.rand(shape, generator=generator).square() * size["vocab"]).long()
    while True:
        yield from ((rows[:, :-1].contiguous(), rows[:, 1:].contiguous()) for rows in drawn)


# ---- Plain PyTorch.


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions on `[batch, heads, seq, dim]`."""
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin


class Attention(nn.Module):
    """Causal self-attention with grouped heads."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        d, self.heads, self.kv_heads = size["embed"], size["heads"], size["kv_heads"]
        dim = d // self.heads
        self.wq = nn.Linear(d, self.heads * dim, bias=False)
        self.wk = nn.Linear(d, self.kv_heads * dim, bias=False)
        self.wv = nn.Linear(d, self.kv_heads * dim, bias=False)
        self.wo = nn.Linear(self.heads * dim, d, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        q = self.wq(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k = self.wk(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        v = self.wv(x).unflatten(-1, (self.kv_heads, -1)).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        grouped = self.heads != self.kv_heads
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return self.wo(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """SwiGLU."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.gate = nn.Linear(size["embed"], size["ffn"], bias=False)
        self.up = nn.Linear(size["embed"], size["ffn"], bias=False)
        self.down = nn.Linear(size["ffn"], size["embed"], bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Norm(nn.Module):
    """RMS norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size["embed"]))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, self.scale.shape, self.scale, EPS)


class Layer(nn.Module):
    """One layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attn_norm, self.attn = Norm(size), Attention(size)
        self.mlp_norm, self.mlp = Norm(size), Mlp(size)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attn(self.attn_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Llama(nn.Module):
    """The whole model with its loss."""

    cos: Tensor
    sin: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.embedding = nn.Embedding(size["vocab"], size["embed"])
        self.body = nn.ModuleList(Layer(size) for _ in range(size["layers"]))
        self.final_norm = Norm(size)
        self.head = nn.Linear(size["embed"], size["vocab"], bias=False)
        half = size["embed"] // size["heads"] // 2
        speeds = THETA ** -(torch.arange(half, dtype=torch.float64) / half)
        angles = torch.outer(torch.arange(size["seq"], dtype=torch.float64), speeds).repeat(1, 2)
        self.register_buffer("cos", angles.cos().float())
        self.register_buffer("sin", angles.sin().float())

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embedding(tokens)
        for layer in self.body:
            x = layer(x, self.cos, self.sin)
        logits = self.head(self.final_norm(x))
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def load(self, size: Size) -> None:
        """Fill every parameter with the shared weights."""
        own = dict(self.named_parameters())
        with torch.no_grad():
            for name, shape in shapes(size).items():
                value = weight(name, shape)
                for place, part in parts(name, value):
                    own[place].copy_(part if part.dim() < 2 else as_linear(name, part))


def parts(name: str, value: Tensor) -> Iterator[tuple[str, Tensor]]:
    """A shared weight by the names of the module: a stack layer by layer."""
    module = name if name.endswith("scale") else f"{name}.weight"
    if not name.startswith("body."):
        yield module, value
        return
    for layer, part in enumerate(value):
        yield f"body.{layer}.{module.removeprefix('body.')}", part


def as_linear(name: str, value: Tensor) -> Tensor:
    """`[in..., out...]` as `nn.Linear` stores it; an embedding as it is."""
    if name == "embedding":
        return value
    return (value.flatten(0, 1) if name.endswith("wo") else value.flatten(1)).T


def plain(size: Size, kind: str, adamw: str) -> Callable[[Tensor, Tensor], float]:
    """The training step of plain PyTorch; `kind` is `eager` or `compile`."""
    model = Llama(size)
    model.load(size)
    flat = [p for p in model.parameters() if p.dim() < 2]
    deep = [p for p in model.parameters() if p.dim() >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": deep}, {"params": flat, "weight_decay": 0.0}],
        lr=RATE,
        betas=BETAS,
        eps=ADAM_EPS,
        weight_decay=DECAY,
        **{adamw: True},
    )
    forward = torch.compile(model) if kind == "compile" else model

    def step(tokens: Tensor, targets: Tensor) -> float:
        loss = forward(tokens, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


# ---- The compiled plan.


def compiled(artifact: Artifact, size: Size) -> Callable[[Tensor, Tensor], float]:
    """The compiled training step; `step_cpu.py` has written the artifact."""
    executor = Executor(artifact.plan, artifact.source)
    for name, shape in shapes(size).items():
        executor.tensor(name).copy_(weight(name, shape))
    executor.tensor("weights").fill_(1)
    tokens_in, targets_in = executor.tensor("tokens"), executor.tensor("targets")
    count = 0

    def step(tokens: Tensor, targets: Tensor) -> float:
        nonlocal count
        count += 1
        tokens_in.copy_(tokens.view_as(tokens_in))
        targets_in.copy_(targets.view_as(targets_in))
        executor.run("train", step=count)
        return executor.tensor("loss").item()

    return step


# ---- Measuring.


def resident(key: str) -> int:
    """VmRSS or VmHWM of this process, bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(key)


def settle() -> int:
    """Start the thread pool, drop what is garbage, reset the high-water mark; gives the base."""
    a = torch.randn(512, 512, requires_grad=True)
    (a @ a).sum().backward()
    del a
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def profile(step: Callable[[], float], count: int) -> dict[str, float]:
    """Milliseconds per step by op, and `(python)`: what no op accounts for."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as trace

    step()
    with trace(activities=[ProfilerActivity.CPU]) as traced:
        begin = time.perf_counter()
        for _ in range(count):
            step()
        wall = time.perf_counter() - begin
    found = {event.key: event.self_cpu_time_total / 1e3 / count for event in traced.key_averages()}
    found["(python)"] = wall * 1e3 / count - sum(found.values())
    return found


def serve(step: Callable[[], float], base: int) -> None:
    """Answer the parent until its end of file."""
    for line in sys.stdin:
        word, *rest = line.split()
        answer: Any
        if word == "steps":
            answer = {"losses": [], "seconds": [], "cpu_seconds": []}
            for _ in range(int(rest[0])):
                begin, worked = time.perf_counter(), time.process_time()
                answer["losses"].append(step())
                answer["seconds"].append(time.perf_counter() - begin)
                answer["cpu_seconds"].append(time.process_time() - worked)
        elif word == "memory":
            answer = {"base": base, "growth": resident("VmHWM") - base}
            Path("/proc/self/clear_refs").write_text("5")
        else:
            answer = profile(step, int(rest[0]))
        tell(answer)


def tell(answer: object) -> None:
    """One line of JSON."""
    print(json.dumps(answer), flush=True)


def main() -> None:
    """Build the contestant and serve."""
    kind, size, threads = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    drawn = batches(size)
    next(drawn)
    artifact = read_artifact(Path(sys.argv[4])) if kind == "fllmc" else None
    base = settle()
    run = compiled(artifact, size) if artifact else plain(size, kind, sys.argv[4])
    tell({"arena_bytes": artifact.plan.arena_bytes if artifact else 0})
    serve(lambda: run(*next(drawn)), base)


if __name__ == "__main__":
    main()
