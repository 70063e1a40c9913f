"""Documents that share a sample: each computes what it would alone, on every mesh."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.frontend import load, load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.settings import Context as Way
from fllmc.ir.settings import Shard, Spec
from fllmc.ir.types import Mesh
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context
from fllmc.passes.inline import Inline
from fllmc.passes.keep_apart import KeepApart
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.runtime.data.documents import Documents, Joined
from fllmc.runtime.data.rows import Reading
from fllmc.runtime.data.windows import Windows
from tests.codegen.running import check
from tests.codegen.running import compiled as made
from tests.ir.programs import arguments_for
from tests.oracle.small_specs import small_spec

CX = Context(Mesh(), lambda _: None)
SEQ = 16
ENDS = (5, 6, 14, 30, 41, 64, 70, 90)
SEQUENCE = Shard(("seq",), ("context",))


@cache
def text(model: str) -> str:
    """A small model with 16 tokens a sample, documents kept apart."""
    found = small_spec(model, "f64", 2).replace("seq: 6", "seq: 16\n  pack: documents")
    found = found.replace("batch: 16", "batch: 4").replace("ffn = 12", "ffn = 16")
    return found.replace("layers = 3", "layers = 2")


@cache
def spec(model: str) -> Spec:
    with TemporaryDirectory() as folder:
        path = Path(folder, "small.fllm")
        path.write_text(text(model))
        return load_spec(str(path), {})[0]


@cache
def batch() -> dict[str, np.ndarray]:
    """Samples with several documents each."""
    rng = np.random.default_rng(3)
    documents = Documents(Joined([rng.integers(0, 256, ENDS[-1])]), np.array(ENDS, dtype=np.int64))
    found = Windows(documents, SEQ, 1, reading=Reading(apart=True)).batch(0, 4)
    three = {name: getattr(found, name) for name in ("tokens", "targets", "weights")}
    return {**three, "starts": found.more["starts"], "positions": found.more["positions"]}


def values(program: Program, entry: str) -> dict[str, np.ndarray]:
    """Arguments of an entry, the data those of `batch`."""
    function = program.function(entry)
    found = arguments_for(program, 0, entry)
    found = {k: np.abs(v) if k.endswith(("#v", "step")) else v for k, v in found.items()}
    for given in function.inputs:
        field = given.name.rpartition(".")[2]
        if given.role == "data" and field in batch():
            found[given.name] = np.resize(batch()[field], found[given.name].shape)
    return found


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_a_document_costs_what_it_costs_alone(model: str) -> None:
    plain = ApplyLoss().run(Inline().run(spec(model).program, CX), CX)
    apart = ApplyLoss().run(KeepApart().run(Inline().run(spec(model).program, CX), CX), CX)
    given = values(apart, "forward")
    assert given["starts"].max() > 0
    whole = evaluate(apart, "forward", given)["loss"]
    alone = 0.0
    for row in range(4):
        starts = given["starts"][row]
        for start in np.unique(starts):
            one = {name: array.copy() for name, array in given.items()}
            length = int((starts == start).sum())
            for name in ("tokens", "targets", "weights"):
                one[name][:] = 0
                one[name][0, :length] = given[name][row, start : start + length]
            alone += float(evaluate(plain, "forward", only(one))["loss"])
    assert abs(float(whole) - alone) <= 1e-11 * alone
    together = float(evaluate(plain, "forward", only(given))["loss"])
    assert abs(together - alone) > 1e-3 * alone


def only(given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arguments of a program that does not keep documents apart."""
    return {name: array for name, array in given.items() if name not in ("starts", "positions")}


def placed(model: str, axes: str, way: Way) -> Program:
    """The program at plan level."""
    given, mesh = spec(model), parse_mesh(axes, Mesh())[0] if axes else Mesh()
    shards = (*given.schedule.shards, SEQUENCE) if axes else ()
    given = replace(given, schedule=replace(given.schedule, shards=shards, context=way))
    cx = Context(mesh, lambda _: None)
    return run_pipeline(given.program, standard_pipeline(given), cx, lambda: 0.0)[0]


@cache
def expected(model: str, entry: str) -> dict[str, np.ndarray]:
    program = placed(model, "", "gather")
    return evaluate(program, entry, values(program, entry))


@pytest.mark.parametrize(
    ("model", "axes", "way"),
    [
        ("gpt", "data=2,context=2", "gather"),
        ("llama", "context=2,tensor=2", "gather"),
        ("llama", "context=4", "ring"),
        ("gpt", "context=2,tensor=2", "ring"),
        ("llama", "data=2,context=2", "exchange"),
        ("llama", "tensor=8", "gather"),
    ],
)
def test_every_mesh_computes_what_one_device_does(model: str, axes: str, way: Way) -> None:
    program = placed(model, axes, way)
    for entry in ("train", "evaluate"):
        found = evaluate(program, entry, values(program, entry))
        for name, wanted in expected(model, entry).items():
            error = np.linalg.norm(wanted - found[name])
            assert error <= 1e-11 * np.linalg.norm(wanted), (entry, name)


@pytest.mark.parametrize("model", ["llama", "gpt"])
def test_the_compiled_step_is_the_evaluators(model: str) -> None:
    check(made(text(model)))


REFUSED = """fllm 1

dims {
  batch
  seq
  vocab
  embed = 8
  key = seq
}

model mixing(tokens: vocab[batch, seq]) -> [batch, seq, vocab] {
  param embedding: vocab -> embed
  param head: embed -> vocab

  x = embedding(tokens)
  return head(EQUATION)
}

data text {
  source: "builtin:pydocs"
  batch: 2
  seq: 4
  pack: documents
}

train run: mixing {
  data: text
  loss: cross_entropy()
  optimizer: sgd()
  rate: constant(peak: 0.1)
  steps: 1
}
"""


@pytest.mark.parametrize(
    ("equation", "reason"),
    [
        ("x + mean[seq](x)", "takes all of `seq` together"),
        ("dot[key](x{seq = key}, dot[embed](x, x{seq = key}))", "gives `seq` another name"),
    ],
)
def test_tokens_that_meet_otherwise_are_refused(equation: str, reason: str) -> None:
    given, found, _ = load("small.fllm", text=REFUSED.replace("EQUATION", equation))
    assert given is not None, found
    with pytest.raises(DiagnosticError) as caught:
        run_pipeline(given.program, standard_pipeline(given), CX, lambda: 0.0)
    assert {each.code for each in caught.value.diagnostics} == {"E0507"}
    assert reason in caught.value.diagnostics[0].message()
