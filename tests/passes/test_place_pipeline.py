"""Placement behind the passes that derive the training step, on a small Llama."""

from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.ir import ops
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Function, Program
from fllmc.ir.settings import Shard
from fllmc.ir.types import HOST_SCALAR, Mesh, indices, tensor
from fllmc.ir.verify import verify
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.place import Place
from fllmc.passes.share_equal import ShareEqual
from tests.ir.programs import arguments_for
from tests.passes.place_programs import (
    DIMS,
    FSDP,
    LAYER,
    MEGATRON,
    PARAMETERS,
    ROWS,
    SIZES,
    Writer,
    forward,
    mesh,
    parameter,
)
from tests.passes.traffic import traffic

HOST = Context(Mesh(), lambda _: None)


def model() -> tuple[Function, Function]:
    """The layer, and the model: (parameters, tokens) -> logits."""
    layer = replace(forward(), name="layer", results=forward().results[:1], outputs=("z",))
    b = Writer("model", SIZES, {layer.name: layer.signature})
    w = {n: b.input(n, tensor("f32", *dims), "param") for n, dims in PARAMETERS.items()}
    tokens = b.input("tokens", indices("vocab", *ROWS), "data")
    b.path = "embedding"
    x = b.one(ops.Take("vocab"), b.sharp(w["embedding"]), tokens)
    (x,) = b.emit(ops.Scan("layer", "layers", 1, len(LAYER)), x, *(w[f"body.{n}"] for n in LAYER))
    b.path = "head"
    n = b.norm(x, w["final_norm.scale"])
    return layer, b.finish([b.dot(n, b.sharp(w["head"]), "embed")], ["logits"])


def adam() -> tuple[Function, ...]:
    """The optimizer's equations over scalars, as the frontend gives them."""
    b = Writer("optimizer", SIZES)
    names = ("param", "grad", "m", "v", "rate", "step")
    param, grad, m, v, rate, _ = (b.input(n, HOST_SCALAR) for n in names)
    m = b.add(b.mul(m, b.constant(0.9)), b.mul(grad, b.constant(0.1)))
    v = b.add(b.mul(v, b.constant(0.99)), b.mul(b.mul(grad, grad), b.constant(0.01)))
    scale = b.add(b.one(ops.Sqrt(), v), b.constant(1e-3))
    param = b.sub(param, b.mul(rate, b.div(m, scale)))
    update = b.finish([param, m, v], ["param", "m", "v"])
    b = Writer("rate", SIZES)
    step = b.input("step", HOST_SCALAR, "host")
    b.input("steps", HOST_SCALAR, "host")
    rate_of = b.finish([b.mul(step, b.constant(0.01))], ["rate"])
    b = Writer("optimizer.states", SIZES)
    states = b.finish([b.constant(0.0), b.constant(0.0)], ["m", "v"])
    return update, replace(update, name="optimizer.no_decay"), rate_of, states


def trained(microbatches: int) -> Program:
    """The training program of a step of the model."""
    program = Program(
        "model",
        tuple(DimSize(name, size) for name, size in DIMS.items() if name != "microbatches"),
        (*model(), *adam()),
        ("model",),
        tuple(parameter(name, dims) for name, dims in PARAMETERS.items()),
    )
    passes = (
        ShareEqual(),
        ApplyLoss(),
        Differentiate(),
        Accumulate(microbatches=microbatches),
        OptimizerStep(clip=0.5, steps=10),
        ShareEqual(),
        DropUnused(),
    )
    for step in passes:
        program = step.run(program, HOST)
    verify(program)
    return program


def place(program: Program, shards: tuple[Shard, ...], on: Mesh) -> Program:
    placed = Place(shards).run(program, Context(on, lambda _: None))
    verify(placed)
    return placed


@pytest.mark.parametrize("microbatches", [1, 2])
@pytest.mark.parametrize("shards", [MEGATRON, FSDP], ids=["megatron", "fsdp"])
@pytest.mark.parametrize("sizes", [(2, 1), (1, 2), (2, 2), (1, 4)], ids=str)
def test_every_entry_means_the_same(
    microbatches: int, shards: tuple[Shard, ...], sizes: tuple[int, int]
) -> None:
    program = trained(microbatches)
    placed = place(program, shards, mesh(*sizes))
    for entry in program.entries:
        values = arguments_for(program, 0, entry)
        values = {
            k: np.abs(v) if k.endswith(("#v", "weights", "step")) else v for k, v in values.items()
        }
        plain, found = evaluate(program, entry, values), evaluate(placed, entry, values)
        for name, wanted in plain.items():
            assert np.isfinite(wanted).all()
            norm = np.linalg.norm(wanted)
            assert np.linalg.norm(wanted - found[name]) <= 1e-12 * norm, (entry, name)


@pytest.mark.parametrize("microbatches", [1, 2])
def test_reductions_are_as_many_as_in_the_step_written_by_hand(microbatches: int) -> None:
    found = [
        t for t in traffic(place(trained(microbatches), MEGATRON, mesh(2, 2))) if t.entry == "train"
    ]
    inside = Counter(t.function for t in found if t.calls >= DIMS["layers"] * microbatches)
    by_body = [n for name, n in sorted(inside.items()) if "layer" in name]
    assert by_body == [2, 2]
    data = [t for t in found if t.axes == ("data",)]
    assert {t.calls for t in data} == {1}
    assert Counter(t.type.names for t in data if t.type.dims) == Counter(PARAMETERS.values())


def test_states_are_stored_like_their_parameter() -> None:
    function = place(trained(2), FSDP, mesh(2, 2)).function("train")
    kinds = {g.name: str(k) for g, k in zip(function.inputs, function.types, strict=False)}
    assert kinds["body.mlp.up#m"] == kinds["body.mlp.up"]
    assert kinds["body.mlp.up#v"] == "f32[layers, embed@data, ffn@tensor]"
