"""A budget for a rank: never exceeded, numbers untouched, and a way out where it can't be met."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from fllmc.codegen.make_plan import Derived, derived_all, make_plan
from fllmc.fitting import Trial, check_host, fit, overlapping, within_budget
from fllmc.frontend.targets import load_target
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.settings import Offload, Spec, Zero
from fllmc.ir.settings import Recompute as Directive
from fllmc.passes.base import Context
from fllmc.passes.errors import BudgetUnmet, HostTooSmall
from fllmc.passes.pipeline import parse_pipeline, print_pipeline, standard_pipeline
from fllmc.passes.recompute_stacks import scan_of, stacks
from fllmc.passes.runner import run_pipeline
from tests.passes.memory_specs import alike, evaluated, executed, text
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

LOTS = 1.0


def drawn(mesh: str, budget: float, **changes: Any) -> tuple[Spec, Any]:
    """The small Llama, larger along the sequence than in its weights."""
    spec, devices = load_drawn(Drawn(text("tiny_llama", "").replace("seq: 12", "seq: 64"), mesh))
    schedule = structs.replace(spec.schedule, budget_gib=budget, **changes)
    return structs.replace(spec, schedule=schedule), devices


def planned(
    mesh: str, budget: float, target: str = "cpu", **changes: Any
) -> tuple[Program, Derived]:
    """The program within the budget, and the bytes of a rank."""
    spec, devices = drawn(mesh, budget, **changes)
    found, decided = within_budget(spec, devices, target)
    assert decided[0].subject == "what is kept"
    cx = Context(devices, lambda found: None)
    passes = standard_pipeline(spec, found, overlapping(spec, target))
    program, _ = run_pipeline(spec.program, passes, cx, lambda: 0.0)
    return program, derived_all([program])[0]


def kept(program: Program) -> list[str]:
    """Types of what the stack keeps."""
    function = program.function("train")
    (stack,) = stacks(function)
    scan = scan_of(function.ops[stack.forward])
    body = program.function(scan.function)
    return [str(body.types[value]) for value in body.results[scan.carries :]]


FAST = """fllm 1

target fast {
  memory_gib: 4
  bf16_tflops: 0.1
  f32_tflops: 0.1
  memory_gbps: 10
  link_gbps: 2
  network_gbps: 1
  host_gbps: 1_000
  host_gib: 4
}
"""


@pytest.fixture
def fast(tmp_path: Path) -> str:
    """A device whose link to the host is faster than anything that it computes."""
    path = tmp_path / "fast.fllm"
    path.write_text(FAST)
    return str(path)


@pytest.mark.parametrize("mesh", ["", "data=2,tensor=2"])
@pytest.mark.parametrize("host", [0.0, None])
def test_a_rank_stays_within_any_budget_and_computes_the_same(
    mesh: str, host: float | None, fast: str
) -> None:
    whole, most = planned(mesh, LOTS)
    spec, devices = drawn(mesh, LOTS, host_gib=host)
    trial = Trial(spec, devices, fast)
    least = trial.arena(trial.whole.least)
    assert least < most.arena_bytes
    wanted = evaluated(whole, "train")
    waiting: list[int] = []
    for share in (0.0, 0.5):
        budget = least + int(share * (most.arena_bytes - least))
        program, made = planned(mesh, budget / 2**30, fast, host_gib=host)
        assert made.arena_bytes <= budget
        waiting.append(made.host_bytes)
        found = evaluated(program, "train")
        assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    assert (max(waiting) > 0) == (host is None)
    assert waiting == sorted(waiting, reverse=True)


def test_over_a_fast_link_values_wait_and_little_is_run_again(fast: str) -> None:
    spec, devices = drawn("", LOTS)
    trial = Trial(spec, devices, fast)
    choice = trial.whole.choose(0)
    assert choice.bytes == 0 < choice.host_bytes
    here = trial.whole.choose(choice.host_bytes)
    assert choice.seconds < here.seconds + 2 * choice.host_bytes / 1e12 + 1e-12
    told = [d for d in trial.decisions(trial.keeping(0)) if "in host memory" in d.choice]
    assert len(told) == 1 + len(choice.away)
    assert all("its copies there and back take" in d.reason for d in told[1:])
    assert any(d.rejected.startswith("computing it again:") for d in told[1:])


def test_generated_code_copies_what_the_plan_says_waits(fast: str) -> None:
    spec, devices = drawn("", LOTS)
    least = Trial(spec, devices, fast).arena(0)
    whole, _ = planned("", LOTS)
    program, _ = planned("", least / 2**30, fast)
    plan = make_plan(program, spec, load_target("cpu"))
    executor, found = executed(plan, "train")
    assert plan.host_bytes > 0
    assert executor.copied["to_host"] == executor.copied["from_host"]
    assert 0 < executor.copied["to_host"][1] <= plan.host_bytes
    alike(found, evaluated(whole, "train"))


def test_host_memory_is_bounded(fast: str) -> None:
    """Transfers in their order, so that nothing but kept values decides what fits."""
    spec, devices = drawn("", LOTS, overlap="off")
    trial = Trial(spec, devices, fast)
    least, all_of_it = trial.arena(0), trial.whole.choose(0).host_bytes
    for allowed in (all_of_it // 2, all_of_it // 4):
        bounds = {"host_gib": allowed / 2**30, "overlap": "off"}
        _, made = planned("", (least + 400_000) / 2**30, fast, **bounds)
        assert 0 < made.host_bytes <= allowed


def test_what_a_directive_offloads_waits_under_a_budget_too(fast: str) -> None:
    directive = Offload("body.*.attn.attend")
    program, made = planned("", LOTS, fast, offload=(directive,))
    assert made.host_bytes > 0
    wanted = evaluated(planned("", LOTS)[0], "train")
    found = evaluated(program, "train")
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())
    spec, _ = drawn("", LOTS, offload=(directive,), host_gib=0.0)
    program, _ = planned("", LOTS, offload=(directive,), recompute=(KEEPS,))
    plan = make_plan(program, spec, load_target("cpu"))
    with pytest.raises(DiagnosticError) as caught:
        check_host(plan, spec.schedule)
    (found,) = caught.value.diagnostics
    assert isinstance(found, HostTooSmall)


KEEPS = Directive("body.*", ("attn.attend",))


def test_with_room_enough_nothing_is_run_again() -> None:
    program, _ = planned("", LOTS)
    function = program.function("train")
    (stack,) = stacks(function)
    there, back = (scan_of(function.ops[at]).function for at in (stack.forward, stack.backward))
    paths = [op.path for op in program.function(back).ops if op.kind == "attend"]
    assert there != back
    assert paths == []


def test_directives_rule_under_a_budget() -> None:
    program, _ = planned("", LOTS, recompute=(KEEPS,))
    assert kept(program) == [
        "f64[batch, seq, embed]",
        "f64[batch, seq, heads, head_dim]",
        "f64[batch, seq, heads]",
    ]


def test_a_budget_that_cannot_be_met_says_by_how_much_and_what_would() -> None:
    spec, devices = drawn("", LOTS, overlap="off")
    trial = Trial(spec, devices, "cpu")
    least = trial.arena(trial.whole.least)
    spec, devices = drawn("", (least - 50_000) / 2**30, overlap="off")
    with pytest.raises(DiagnosticError) as caught:
        within_budget(spec, devices, "cpu")
    (found,) = caught.value.diagnostics
    assert isinstance(found, BudgetUnmet)
    assert found.over == "48.8 KiB"
    assert found.helps()[0].startswith("it fits with `microbatches: ")


def test_micro_batches_in_flight_count() -> None:
    """An early stage of a pipeline keeps several, so it keeps less of each."""
    spec, devices = drawn("", LOTS, host_gib=0.0)
    trial = Trial(spec, devices, "cpu")
    once = trial.keeping(trial.whole.least * 4)
    passes = (once, structs.replace(once, in_flight=4))
    one, four = (run_pipeline(trial.before, (p,), trial.cx, lambda: 0.0)[0] for p in passes)
    assert len(kept(four)) < len(kept(one))
    assert kept(four) == ["f64[batch, seq, embed]"]


def test_a_budget_prints_and_parses() -> None:
    spec, devices = drawn("", LOTS)
    found, _ = within_budget(spec, devices, "h100")
    assert found is not None
    assert parse_pipeline(print_pipeline((found,))) == (found,)


def test_transfers_run_beside_computation_where_their_buffers_fit() -> None:
    """At the least budget that can be met there is no room for the next layer's parameters."""
    zero = (Zero(3, ("data",)),)
    roomy, devices = drawn("data=2", LOTS, zero=zero)
    _, beside, told = fit(roomy, devices, "cpu")
    assert beside is not None
    assert "transfers" not in [decision.subject for decision in told]
    bare, _ = drawn("data=2", LOTS, zero=zero, overlap="off")
    trial, other = Trial(bare, devices, "cpu"), Trial(roomy, devices, "cpu")
    least, more = trial.arena(trial.whole.least), other.arena(other.whole.least)
    assert least < more
    tight, _ = drawn("data=2", least / 2**30, zero=zero)
    within, beside, told = fit(tight, devices, "cpu")
    assert beside is None
    (off,) = [decision for decision in told if decision.subject == "transfers"]
    assert off.choice == "each is done in its order"
    assert "buffers" in off.reason  # they do not fit, or cost more recomputing than they hide
    cx = Context(devices, lambda found: None)
    passes = standard_pipeline(tight, within, beside)
    program, _ = run_pipeline(tight.program, passes, cx, lambda: 0.0)
    assert derived_all([program])[0].arena_bytes <= least
