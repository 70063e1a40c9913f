"""A budget for a rank: never exceeded, numbers untouched, and a way out where it can't be met."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec import structs

from fllmc.codegen.make_plan import derived_all
from fllmc.fitting import Trial, fit, within_budget
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.program import Program
from fllmc.ir.settings import Recompute as Directive
from fllmc.ir.settings import Spec, Zero
from fllmc.passes.base import Context
from fllmc.passes.errors import BudgetUnmet
from fllmc.passes.pipeline import parse_pipeline, print_pipeline, standard_pipeline
from fllmc.passes.recompute_stacks import scan_of, stacks
from fllmc.passes.runner import run_pipeline
from tests.passes.memory_specs import evaluated, text
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

LOTS = 1.0


def drawn(mesh: str, budget: float, **changes: Any) -> tuple[Spec, Any]:
    """The small Llama, larger along the sequence than in its weights."""
    spec, devices = load_drawn(Drawn(text("tiny_llama", "").replace("seq: 12", "seq: 64"), mesh))
    schedule = structs.replace(spec.schedule, budget_gib=budget, **changes)
    return structs.replace(spec, schedule=schedule), devices


def planned(mesh: str, budget: float, **changes: Any) -> tuple[Program, int]:
    """The program within the budget, and the bytes of a rank."""
    spec, devices = drawn(mesh, budget, **changes)
    found, decided = within_budget(spec, devices, "cpu")
    assert len(decided) == 1
    cx = Context(devices, lambda found: None)
    program, _ = run_pipeline(spec.program, standard_pipeline(spec, found), cx, lambda: 0.0)
    return program, derived_all([program])[0].arena_bytes


def kept(program: Program) -> list[str]:
    """Types of what the stack keeps."""
    function = program.function("train")
    (stack,) = stacks(function)
    scan = scan_of(function.ops[stack.forward])
    body = program.function(scan.function)
    return [str(body.types[value]) for value in body.results[scan.carries :]]


@pytest.mark.parametrize("mesh", ["", "data=2,tensor=2"])
def test_a_rank_stays_within_any_budget_and_computes_the_same(mesh: str) -> None:
    whole, most = planned(mesh, LOTS)
    spec, devices = drawn(mesh, LOTS)
    trial = Trial(spec, devices, "cpu")
    least = trial.arena(trial.whole.least)
    assert least < most
    wanted = evaluated(whole, "train")
    for share in (0.0, 0.3, 0.7):
        budget = least + int(share * (most - least))
        program, arena = planned(mesh, budget / 2**30)
        assert arena <= budget
        found = evaluated(program, "train")
        assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def test_with_room_enough_nothing_is_run_again() -> None:
    program, _ = planned("", LOTS)
    function = program.function("train")
    (stack,) = stacks(function)
    there, back = (scan_of(function.ops[at]).function for at in (stack.forward, stack.backward))
    paths = [op.path for op in program.function(back).ops if op.kind == "attend"]
    assert there != back
    assert paths == []


def test_directives_rule_under_a_budget() -> None:
    directive = Directive("body.*", ("attn.attend",))
    program, _ = planned("", LOTS, recompute=(directive,))
    assert kept(program) == [
        "f64[batch, seq, embed]",
        "f64[batch, seq, heads, head_dim]",
        "f64[batch, seq, heads]",
    ]


def test_a_budget_that_cannot_be_met_says_by_how_much_and_what_would() -> None:
    spec, devices = drawn("", LOTS)
    trial = Trial(spec, devices, "cpu")
    least = trial.arena(trial.whole.least)
    spec, devices = drawn("", (least - 100_000) / 2**30)
    with pytest.raises(DiagnosticError) as caught:
        within_budget(spec, devices, "cpu")
    (found,) = caught.value.diagnostics
    assert isinstance(found, BudgetUnmet)
    assert found.over == "97.7 KiB"
    assert "it fits with `microbatches: 2`" in found.helps()


def test_micro_batches_in_flight_count() -> None:
    """An early stage of a pipeline keeps several, so it keeps less of each."""
    spec, devices = drawn("", LOTS)
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
    assert [decision.subject for decision in told] == ["what is kept"]
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
