"""Stacks of patterns: what their layers are called, what they compute, and that placing, stages,
recomputation and adapters know them."""

import re

import numpy as np
import pytest

from fllmc.frontend import load
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.passes.apply_adapter import selected
from tests.specs.evaluated import evaluated_step
from tests.specs.patterns import pattern_spec, written_out

KINDS = {"local": ("up", "down"), "global": ("wq", "wo")}


def program(text: str) -> Program:
    """The program of a spec at the model level."""
    spec, found, _ = load("a.fllm", text=text)
    assert spec is not None, found
    return spec.program


def layers(whole: Program) -> dict[str, tuple[str, int]]:
    """By the path of each layer's parameter: its tensor, and its position there."""
    sizes = whole.sizes
    return {
        each.layer_name(at): (each.name, at)
        for each in whole.parameters
        for at in range(sizes.size(each.stack) if each.stack else 1)
    }


def kinds(count: int) -> list[str]:
    """The kind of each layer of `[2 * local, global]`."""
    return [("local", "local", "global")[number % 3] for number in range(count)]


@pytest.mark.parametrize("count", [2, 3, 8])
def test_each_layer_has_its_number_in_the_path_whatever_its_kind(count: int) -> None:
    found = layers(program(pattern_spec(count)))
    wanted = [
        f"body.{number}.{name}" for number, kind in enumerate(kinds(count)) for name in KINDS[kind]
    ]
    assert sorted(found) == sorted(["embedding", *wanted])


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_pattern_is_its_layers_one_after_the_other(count: int) -> None:
    ours, theirs = program(pattern_spec(count)), program(written_out(kinds(count)))
    random = np.random.default_rng(1)
    given = {p.name: random.normal(0, 0.5, ours.sizes.shape(p.type)) for p in ours.parameters}
    other = {
        re.sub(r"^body\.", "l", path): given[name][at]
        if ours.parameter(name).stack
        else given[name]
        for path, (name, at) in layers(ours).items()
    }
    tokens = {"tokens": random.integers(0, 256, (4, 8))}
    found = evaluate(ours, "model", given | tokens)
    wanted = evaluate(theirs, "model", other | tokens)
    for name in ("out", "penalty"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-12, atol=1e-12)


MESHES = {
    "data=2,tensor=2": """
mesh grid { data: 2 tensor: 2 }
schedule placed for first on grid {
  shard batch over data
  shard (heads, ffn, vocab) over tensor
  zero 3 over data in *
  recompute body.* keep [attend]
}
""",
    "pipe=2": """
mesh line { pipe: 2 }
schedule piped for first on line {
  shard layers over pipe
  recompute body.*
  microbatches: 2
}
""",
}


@pytest.mark.parametrize("mesh", MESHES)
def test_a_pattern_is_trained_on_a_mesh_as_on_one_device(mesh: str) -> None:
    found = evaluated_step(pattern_spec(8, more=MESHES[mesh]), mesh)
    wanted = evaluated_step(pattern_spec(8), "1")
    assert set(wanted) <= set(found)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-11, err_msg=name)


def test_selectors_speak_of_all_layers_that_have_what_they_name() -> None:
    whole = program(pattern_spec(8))
    names = [each.name for each in selected("body.*.wq", whole)]
    assert names == ["body.2.wq"]
    assert whole.parameter("body.2.wq").shown_name == "body.*.wq"
    assert len(selected("body.*", whole)) == len(whole.parameters) - 1


NAMES = """
checkpoint foreign for tiny {
  embedding <-> "embed" : [vocab, embed]
  body[i].up <-> "layers.{i}.up" : [ffn, embed]
  body[i].{wq} <-> "layers.{i + 1}.query" : [(heads head_dim), embed]
  body[i].wo <-> "layers.{i}.out" : [embed, (heads head_dim)]
LAST
}
"""


@pytest.mark.parametrize("count", [2, 3, 8])
def test_a_checkpoint_names_the_layers_that_have_what_it_speaks_of(count: int) -> None:
    last = '  body[i].down <-> "layers.{i}.down" : [embed, ffn]'
    spec, found, _ = load("a.fllm", text=pattern_spec(count, more=NAMES.replace("LAST", last)))
    assert spec is not None and spec.foreign is not None, found
    names = {
        part.name.at(place): tensor.names[0].at(place)
        for tensor in spec.foreign.tensors
        for place in tensor.places()
        for part in tensor.parts
    }
    assert set(names) == set(layers(spec.program))
    assert {name for name in names.values() if name.endswith(".up")} == {
        f"layers.{n}.up" for n, kind in enumerate(kinds(count)) if kind == "local"
    }
    assert names.get("body.2.wq", "layers.3.query") == "layers.3.query"


def test_a_layer_that_no_name_is_given_for_is_missed() -> None:
    text = pattern_spec(8, more=NAMES.replace("LAST", ""))
    _, found, _ = load("a.fllm", text=text)
    assert {each.code for each in found if each.severity == "error"} == {"E0287"}
