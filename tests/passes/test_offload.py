"""offload: the same step to the last bit, with kept values counted in host memory."""

from __future__ import annotations

import numpy as np
import pytest

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.ops import Scan
from fllmc.ir.plan import Plan
from fllmc.ir.settings import Offload as Directive
from fllmc.passes.base import Context
from fllmc.passes.errors import OffloadsNothing
from fllmc.passes.offload import Offload
from fllmc.passes.pipeline import cut_pipeline, standard_pipeline
from fllmc.passes.runner import run_pipeline
from tests.codegen.overlaps import faults
from tests.passes.memory_specs import DEVICES, alike, compiled, evaluated, executed, text
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

LAYERS = 3
WHOLE = "  offload body.*"
MLP = "  offload body.*.mlp"


def kept(plan: Plan, entry: str = "train") -> list[int]:
    """Bytes of each value that a layer keeps."""
    (scan,) = (
        op.attrs
        for op in plan.program.function(entry).ops
        if isinstance(op.attrs, Scan) and not op.attrs.reverse
    )
    body = plan.program.function(scan.function)
    kinds = [body.types[value] for value in body.results[scan.carries :]]
    return [plan.program.sizes.local_bytes(kind) for kind in kinds]


@pytest.mark.parametrize("model", ["tiny_gpt", "tiny_llama"])
@pytest.mark.parametrize("lines", [WHOLE, MLP, WHOLE + "\n  recompute body.* keep [attn.attend]"])
def test_the_same_to_the_last_bit_with_every_copy_counted(model: str, lines: str) -> None:
    rest = "\n".join(line for line in lines.splitlines() if "offload" not in line)
    _, here = compiled(model, rest)
    _, away = compiled(model, lines)
    _, wanted = executed(here, "train")
    executor, found = executed(away, "train")
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert faults(away) == []
    assert away.host_bytes > 0 == here.host_bytes
    assert executor.host_arena.numel() == away.host_bytes
    (calls, moved), back = executor.copied["to_host"], executor.copied["from_host"]
    assert (calls, moved) == back
    assert calls % LAYERS == 0
    assert moved <= away.host_bytes < moved + 64 * calls
    if "mlp" not in lines:
        assert moved == LAYERS * sum(kept(away))


def test_the_device_holds_a_layer_of_it_at_most() -> None:
    _, here = compiled("tiny_llama", "  microbatches: 2")
    _, away = compiled("tiny_llama", "  microbatches: 2\n" + WHOLE)
    spared = here.arena_bytes - away.arena_bytes
    assert 0 < spared <= away.host_bytes
    larger = "  microbatches: 1\n  loss_chunks: 6"
    (_, here), (_, away) = (compiled("tiny_llama", t) for t in (larger, larger + "\n" + WHOLE))
    assert here.arena_bytes - away.arena_bytes > away.host_bytes // 2


@pytest.mark.parametrize("mesh", DEVICES[1:])
def test_on_a_mesh(mesh: str) -> None:
    whole, _ = compiled("tiny_llama", "  microbatches: 2")
    _, plan = compiled("tiny_llama", "  microbatches: 2\n" + WHOLE, mesh)
    assert plan.host_bytes > 0
    alike(evaluated(plan.program, "train"), evaluated(whole, "train"))


def test_what_cannot_be_offloaded_stays() -> None:
    spec, devices = load_drawn(Drawn(text("tiny_llama", ""), ""))
    passes, _ = cut_pipeline(standard_pipeline(spec))
    said: list[Diagnostic] = []
    cx = Context(devices, said.append)
    program, _ = run_pipeline(spec.program, passes, cx, lambda: 0.0)
    assert Offload((Directive("body.*.attn.wo"),)).run(program, cx) == program
    assert [type(found) for found in said] == [OffloadsNothing]
