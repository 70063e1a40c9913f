"""Several steps of an optimizer on a few parameters, by the evaluator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.render import render
from fllmc.ir.types import Mesh, Type
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline

STEPS = 5


def small(optimizer: str, rate: str = "constant(peak: 0.02)", more: str = "") -> str:
    """A model with a stack of matrices, both wide and high, of vectors, and a table."""
    return f"""
fllm 1
import "library/transformer.fllm" (norm, layer)
dims {{ batch seq vocab embed = 8 heads = 4 kv_heads = 2 ffn = 16 layers = 2 }}
model small(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {{
  param embedding: vocab -> embed = normal(std: 0.3)
  param head: embed -> vocab
  sub final_norm: norm
  stack body: layer over layers
  return head(final_norm(body(embedding(tokens))))
}}
data text {{ source: "builtin:pydocs" tokenizer: bytes batch: 8 seq: 4 }}
train once: small {{
  data: text
  loss: cross_entropy()
  optimizer: {optimizer}
  rate: {rate}
  steps: 10
  precision: f64
  {more}
}}
"""


def program_of(text: str, mesh: str = "1") -> Program:
    """The text compiled for a mesh, at the end of all passes."""
    spec, found, sources = load("stepped.fllm", text=text)
    assert spec is not None, render(found, sources)
    chosen = parse_mesh(mesh, Mesh())[0] if mesh != "1" else Mesh()
    cx = Context(chosen, lambda _: None)
    return run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)[0]


Values = Mapping[str, np.ndarray]


def run(program: Program, initial: Mapping[str, float], steps: int = STEPS) -> list[Values]:
    """What `train` gives at each step, from random parameters, each step on a batch of its own.

    `initial` is what states of each name begin with, zero if it says nothing.
    """
    function = program.function("train")
    kinds = dict(zip((i.name for i in function.inputs), function.types, strict=False))
    roles = {i.name: i.role for i in function.inputs}
    held = parameters(program)
    for name, kind in kinds.items():
        if roles[name] == "state":
            start = initial.get(name.rpartition("#")[2], 0.0)
            held[name] = np.full(program.sizes.shape(kind), start)
    given: list[Values] = []
    for step in range(1, steps + 1):
        drawn = {n: drawn_data(program, kinds[n], n, step) for n, r in roles.items() if r == "data"}
        host = {n: float(step) for n, role in roles.items() if role == "host"}
        found = evaluate(program, "train", {**held, **drawn, **host})
        given.append({name: np.asarray(value) for name, value in found.items()})
        held = {name: given[-1][name] for name in held}
    return given


def parameters(program: Program) -> dict[str, np.ndarray]:
    """What all parameters begin with."""
    shapes = {p.name: program.sizes.shape(p.type) for p in program.parameters}
    return {
        name: np.random.default_rng([*name.encode()]).normal(0, 0.3, shape)
        for name, shape in shapes.items()
    }


def drawn_data(program: Program, kind: Type, name: str, step: int) -> np.ndarray:
    """A batch's values; tokens and targets are drawn, weights are positive."""
    shape = program.sizes.shape(kind)
    rng = np.random.default_rng([step, int(np.prod(shape)), *name.encode()])
    if kind.index:
        return rng.integers(0, program.sizes.size(kind.index), shape)
    return rng.random(shape)


def slopes(text: str, before: Sequence[Values]) -> list[Values]:
    """The gradients at the values before each step, by parameter."""
    spec, _, _ = load("stepped.fllm", text=text)
    assert spec is not None
    passes = standard_pipeline(spec)
    at = next(at for at, each in enumerate(passes) if each.name == "optimizer-step")
    cx = Context(Mesh(), lambda _: None)
    program, _ = run_pipeline(spec.program, passes[:at], cx, lambda: 0.0)
    function = program.function("gradients")
    kinds = dict(zip((i.name for i in function.inputs), function.types, strict=False))
    found: list[Values] = []
    for step, values in enumerate(before, 1):
        data = [i.name for i in function.inputs if i.role == "data"]
        drawn = {name: drawn_data(program, kinds[name], name, step) for name in data}
        given = {name: values[name] for name in kinds if name not in data}
        made = evaluate(program, "gradients", {**given, **drawn})
        found.append({n.removeprefix("grad."): np.asarray(v) for n, v in made.items()})
    return found
