"""A budget for each rank of a pipeline: none exceeds it, and early ones compute more again."""

from __future__ import annotations

import pytest

from fllmc.codegen.make_plan import derived_all
from fllmc.codegen.turns import Turns
from fllmc.fitting import StageTrial, trial_of, within_budget
from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Program
from fllmc.passes.base import Context
from fllmc.passes.errors import BudgetUnmet
from fllmc.passes.finishing import finish
from fllmc.passes.stages.cut_stages import stage_programs
from fllmc.passes.stages.keep import Within
from tests.oracle.judge_of_bugs import difference
from tests.oracle.techniques import alone, combined
from tests.specs.evaluated import evaluated_step

ORDERS = ("gpipe", "1f1b", "interleaved", "breadth first", "zb-h1", "zb-v", "auto", "four stages")
LONG = pytest.mark.long
COMPARED = (
    ("zb-v",),
    ("four stages",),
    ("interleaved", "zero 3", "recompute"),
    pytest.param(("1f1b",), marks=LONG),
    pytest.param(("zb-h1", "frozen"), marks=LONG),
    pytest.param(("1f1b", "experts"), marks=LONG),
)
ON_DEVICE = "host_gib: 0"
HOSTED = (
    (("zb-v",), "overlap: on"),
    (("1f1b", "accumulate"), "overlap: off\n  offload body.*"),
    pytest.param(("gpipe",), "overlap: off", marks=LONG),
    (("four stages", "zero 3"), "overlap: off\n  host_gib: 0.0002"),
)
"""Pipelines with more lines in their schedules, where values may wait in host memory."""


def trial(names: tuple[str, ...], more: str = ON_DEVICE) -> StageTrial:
    """Trials of a technique's small Llama, with more lines in its schedule."""
    case = combined(names)
    spec, _, _ = load("spec.fllm", text=with_lines(names, more))
    assert spec is not None
    found = trial_of(spec, parse_mesh(case.mesh, spec.mesh)[0], "")
    assert isinstance(found, StageTrial)
    return found


def bounds(found: StageTrial) -> tuple[list[int], list[int]]:
    """Bytes of each rank that keeps least, and that keeps all."""
    ranks = range(len(found.kept))
    return found.arenas(found.least()), found.arenas([found.choice(r, 2**40) for r in ranks])


def with_lines(names: tuple[str, ...], lines: str) -> str:
    """The text with more lines in its schedule."""
    return combined(names).text.replace("microbatches:", f"{lines}\n  microbatches:")


def with_budget(names: tuple[str, ...], budget: int, more: str = ON_DEVICE) -> str:
    """The text with a budget of so many bytes."""
    return with_lines(names, f"budget_gib: {budget / 2**30!r}\n  {more}")


@pytest.mark.parametrize("names", COMPARED)
def test_every_rank_is_within_its_budget_and_the_step_is_the_same(names: tuple[str, ...]) -> None:
    found = trial(names)
    least, most = bounds(found)
    budget = max(least) + (max(most) - max(least)) // 3
    found.total = budget
    chosen = found.fitting()
    assert chosen is not None
    assert max(found.arenas(chosen)) <= budget
    again = [choice.seconds for choice in chosen]
    if max(most) > budget:
        assert max(again) > 0
        found_step = evaluated_step(with_budget(names, budget), combined(names).mesh)
        wanted = evaluated_step(alone(names).text, "1")
        assert difference(found_step, wanted, 1e-11) == ""


@pytest.mark.parametrize(
    ("order", "share"), [("four stages", 0.25), pytest.param("1f1b", 0.5, marks=LONG)]
)
def test_the_last_rank_computes_less_again_than_the_first(order: str, share: float) -> None:
    found = trial((order,))
    least, most = bounds(found)
    ranks = len(found.kept)
    assert [each.in_flight for each in found.kept] == [(ranks - rank,) for rank in range(ranks)]
    found.total = max(least) + int((max(most) - max(least)) * share)
    chosen = found.fitting()
    assert chosen is not None
    told = list(found.decisions(chosen))
    assert [d.subject for d in told[:ranks]] == [f"what is kept on pipe {r}" for r in range(ranks)]
    assert told[0].reason.endswith(f"in flight at once: {ranks}")
    again = [c.seconds for c in chosen]
    assert again[-1] < again[0]


@pytest.mark.parametrize("order", ORDERS)
def test_kept_values_have_as_many_buffers_as_micro_batches_are_in_flight(order: str) -> None:
    """None has more than the choice reckons with, and some has as many."""
    found = trial((order,))
    held = found.keeping([found.choice(rank, 2**40) for rank in range(len(found.kept))])
    cut = stage_programs(found.before, found.asked, found.microbatches, found.target, held)
    for program, kept in zip(cut.programs, found.kept, strict=True):
        counts = buffers(program)
        assert 0 < counts <= max(kept.in_flight)
        if order in ("gpipe", "1f1b", "four stages"):
            assert counts == max(kept.in_flight)


def buffers(program: Program) -> int:
    """The most buffers of a kept value in a program's training step."""
    attrs = [op.attrs for op in program.function("train").ops if isinstance(op.attrs, Pipeline)]
    counts = [Turns(program, each).counts for each in attrs]
    return max(n for each in counts for port, n in each.items() if port.startswith("kept"))


def test_the_plan_has_what_was_promised() -> None:
    """The finished stages, of alike ones once, are within the budget."""
    found = trial(("four stages",))
    least, most = bounds(found)
    budget = (max(least) + max(most)) // 2
    case = combined(("four stages",))
    spec, _, _ = load("spec.fllm", text=with_budget(("four stages",), budget))
    assert spec is not None
    mesh, _ = parse_mesh(case.mesh, spec.mesh)
    within, told = within_budget(spec, mesh, "")
    assert isinstance(within, Within)
    cx = Context(mesh, lambda said: None)
    done = finish(spec, cx, lambda: 0.0, lambda number, name, program: None, found.target, within)
    arenas = [made.arena_bytes for made in derived_all(done.programs)]
    assert max(arenas) <= budget < max(most)
    assert sum(d.subject.startswith("what is kept on pipe") for d in told) == 4


def test_a_budget_that_no_choice_meets() -> None:
    found = trial(("1f1b",))
    least = max(bounds(found)[0])
    spec, _, _ = load("spec.fllm", text=with_budget(("1f1b",), least - 1024))
    assert spec is not None
    with pytest.raises(DiagnosticError) as caught:
        within_budget(spec, parse_mesh("pipe=2", spec.mesh)[0], "")
    (said,) = caught.value.diagnostics
    assert isinstance(said, BudgetUnmet)
    assert said.over == "1.00 KiB"


@pytest.mark.parametrize(("names", "more"), HOSTED)
def test_values_wait_in_host_memory_for_each_micro_batch(names: tuple[str, ...], more: str) -> None:
    """Below what the ranks need that compute as much again as they can."""
    found, without = trial(names, more), trial(names)
    least, computed = (max(each.arenas(each.least())) for each in (found, without))
    assert least < computed
    text = with_budget(names, (least + computed) // 2, more)
    case = combined(names)
    spec, _, _ = load("spec.fllm", text=text)
    assert spec is not None
    mesh, _ = parse_mesh(case.mesh, spec.mesh)
    within, told = within_budget(spec, mesh, "")
    assert isinstance(within, Within)
    cx = Context(mesh, lambda said: None)
    done = finish(spec, cx, lambda: 0.0, lambda number, name, program: None, found.target, within)
    made = derived_all(done.programs)
    assert max(each.arena_bytes for each in made) <= spec.schedule.budget_gib * 2**30
    waiting = [each.host_bytes for each in made]
    assert max(waiting) > 0
    assert max(waiting) <= spec.schedule.host_bytes(found.target)
    assert any("in host memory" in decision.choice for decision in told)
    wanted = evaluated_step(alone(names).text, "1")
    assert difference(evaluated_step(text, case.mesh), wanted, 1e-11) == ""
