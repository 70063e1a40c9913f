"""Layers that mix a sequence by convolutions and recurrences: on meshes, in stages, compiled."""

import numpy as np
import pytest

from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.codegen.running import check, compiled
from tests.specs.evaluated import evaluated_step
from tests.specs.state_space import hybrid

PLACED = """
mesh grid { data: 2 tensor: 2 }
schedule placed for first on grid {
  shard batch over data
  shard (ssm_heads, ssm_groups, mixed, vocab) over tensor
  shard seq over tensor elsewhere
  recompute body.*
}
"""
COPIED = """
mesh line { tensor: 4 }
schedule placed for first on line {
  shard (ssm_heads, ssm_groups, vocab) over tensor
}
"""
STAGES = """
mesh line { pipe: 2 }
schedule staged for first on line {
  shard layers over pipe
  microbatches: 2
}
"""
DIVIDED = """
mesh line { context: 2 }
schedule divided for first on line {
  shard seq over context
}
"""


@pytest.mark.parametrize(
    ("groups", "more", "mesh"),
    [
        (2, PLACED, "data=2,tensor=2"),
        pytest.param(1, PLACED, "data=2,tensor=2", marks=pytest.mark.long),
        (2, COPIED, "tensor=4"),
        pytest.param(2, STAGES, "pipe=2", marks=pytest.mark.long),
    ],
)
def test_a_step_on_a_mesh_is_that_of_one_device(groups: int, more: str, mesh: str) -> None:
    found, wanted = evaluated_step(hybrid(groups, more), mesh), evaluated_step(hybrid(groups), "1")
    assert set(wanted) <= set(found)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-11, err_msg=name)


def test_the_compiled_step_is_that_of_the_evaluator() -> None:
    check(compiled(hybrid()))


def test_a_divided_sequence_is_refused() -> None:
    spec, found, _ = load("a.fllm", text=hybrid(more=DIVIDED))
    assert spec is not None, found
    cx = Context(parse_mesh("context=2", Mesh())[0], lambda found: None)
    with pytest.raises(DiagnosticError) as raised:
        run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)
    assert {each.code for each in raised.value.diagnostics} == {"E0312"}
