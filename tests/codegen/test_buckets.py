"""What an op works through at once lies in one stretch, and is what it was apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from msgspec.structs import replace

from fllmc.codegen.buckets import buckets, runs
from fllmc.codegen.make_plan import follows, make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.driver import compile_spec
from fllmc.frontend import load
from fllmc.frontend.targets import load_target
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.plan import Plan
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.join_updates import JoinUpdates
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import run_pipeline
from fllmc.runtime.executor import Executor
from tests.codegen.running import arguments, results
from tests.oracle.techniques import combined, spec_text


def compiled(tmp_path: Path, *techniques: str, precision: str = "f32") -> Plan:
    """The plan of a small Llama in f32, computed in this precision."""
    case = combined(techniques, "f32")
    path = tmp_path / "bucketed.fllm"
    path.write_text(case.text.replace("compute: f32", f"compute: {precision}"))
    return compile_spec(str(path), mesh=case.mesh).plan


def executed(joins: bool, microbatches: int = 1) -> dict[str, torch.Tensor]:
    """A step in f32 of parameters of odd sizes, joined or each by itself; nothing is clipped."""
    text = spec_text((), "f32", "llama3_8b").replace("  clip: 0.5\n", "")
    text = text.replace("ffn = 16", "ffn = 13").replace("embed = 16", "embed = 10")
    text = text.replace("microbatches: 1", f"microbatches: {microbatches}")
    spec, found, _ = load("odd.fllm", text=text)
    assert spec is not None, found
    passes = [p for p in standard_pipeline(spec) if joins or not isinstance(p, JoinUpdates)]
    cx = Context(Mesh(), lambda _: None)
    program, _ = run_pipeline(spec.program, passes, cx, lambda: 0.0)
    plan = make_plan(program, spec, load_target("cpu"))
    assert bool(plan.buckets) == joins
    executor = Executor(plan, schedule_text(plan))
    return results(executor, "train", arguments(program, "train"))


@pytest.mark.parametrize("microbatches", [1, 4])
def test_no_bit_of_a_step_changes(microbatches: int) -> None:
    wanted, found = executed(False, microbatches), executed(True, microbatches)
    assert found.keys() == wanted.keys()
    for name in wanted.keys() - {"grad_norm"}:
        assert (found[name] == wanted[name]).all(), name


@pytest.mark.parametrize(
    "techniques",
    [(), ("zero 1", "tensor"), ("zero 3", "accumulate"), ("lora", "zero 2"), ("1f1b",)],
)
def test_regions_adjoin(tmp_path: Path, techniques: tuple[str, ...]) -> None:
    plan = compiled(tmp_path, *techniques)
    for stage in plan.by_stage:
        assert stage.buckets
        held = {each.name: each for each in stage.stored}
        for bucket in stage.buckets:
            at = bucket.offset
            for region in bucket.regions:
                assert region.offset == at
                at += region.bytes
                mark = "" if bucket.holds == "param" else f"#{bucket.holds}"
                if bucket.holds != "grad":
                    assert held[region.name + mark].offset == region.offset
                    assert held[region.name + mark].bytes == region.bytes
            assert at == bucket.offset + bucket.bytes <= stage.arena_bytes


def test_each_list_of_a_bucket_has_the_same_regions(tmp_path: Path) -> None:
    plan = compiled(tmp_path, "data")
    by_name: dict[str, dict[str, list[str]]] = {}
    for bucket in plan.buckets:
        names = [region.name for region in bucket.regions]
        assert by_name.setdefault(bucket.name, {}).setdefault(bucket.holds, names) == names
    for lists in by_name.values():
        assert sorted(lists) == ["grad", "m", "param", "v"]
        assert len({tuple(names) for names in lists.values()}) == 1


def test_a_plan_whose_regions_lie_apart_is_refused(tmp_path: Path) -> None:
    plan = compiled(tmp_path, "data")
    last = max(plan.stored, key=lambda each: each.offset)
    inside = plan.buckets[-1].regions[0].offset
    moved = [replace(s, offset=last.offset + 64) if s.offset == inside else s for s in plan.stored]
    frames = {frame.function: frame for frame in plan.frames}
    with pytest.raises(InternalError, match="lies at"):
        buckets(plan.program, frames, moved, plan.frame_base)
    assert not follows(replace(plan, buckets=plan.buckets[1:]))


def test_a_class_has_one_place() -> None:
    assert runs([(3, 4), (5, 6), (3, 4)], lambda root: False) == [(3, 4), (5, 6)]
    for lists in ([(3, 4), (4, 5)], [(3, 3)], [(4, 3), (3, 4)]):
        with pytest.raises(InternalError):
            runs(lists, lambda root: False)
    with pytest.raises(InternalError):
        runs([(3, 4)], lambda root: root == 4)
    assert runs([(3, 4)], lambda root: True) == []


def test_the_run_refuses_tensors_that_do_not_adjoin(tmp_path: Path) -> None:
    plan = compiled(tmp_path)
    executor = Executor(plan, schedule_text(plan))
    names = [region.name for region in plan.buckets[-1].regions]
    tensors = [executor.tensor(name) for name in names]
    flat = executor.adjoining(tensors)
    assert flat.numel() == sum(tensor.numel() for tensor in tensors)
    assert flat.data_ptr() == tensors[0].data_ptr()
    with pytest.raises(InternalError):
        executor.adjoining(tensors[::-1])
