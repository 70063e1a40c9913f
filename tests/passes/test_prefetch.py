"""A stack's transfers run beside its other layers: which, when, and with the same numbers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from msgspec import structs

from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.ir import ops
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Plan
from fllmc.ir.program import Program
from fllmc.ir.types import Mesh
from fllmc.ir.verify import faults as broken_rules
from fllmc.passes.base import Context
from fllmc.passes.exposure import exposure
from fllmc.passes.overlap import Overlap
from fllmc.runtime.executor import Executor
from fllmc.runtime.flight import Side, beside
from tests.codegen.overlaps import faults
from tests.codegen.running import arguments, results
from tests.passes.test_overlap import CPU, CX, OVERLAP, before, scans

LAYERS = 6
ZERO = ("zero 3", "accumulate")
AWAY = ("offload",)


def plan_of(names: tuple[str, ...], overlap: Overlap | None = OVERLAP) -> Plan:
    """The plan of a small Llama with these techniques."""
    spec, program = before(names)
    return make_plan(overlap.run(program, CX) if overlap else program, spec, CPU)


def cut(program: Program, reverse: bool) -> ops.Scan:
    """The training step's scan over the layers in one direction."""
    names = ("layer.backward",) if reverse else ("layer.forward",)
    (found,) = [scan for scan in scans(program) if scan.function in names]
    return found


def kinds(program: Program, name: str) -> list[str]:
    """The transfers of a function, by what they do."""
    found = [op.attrs for op in program.function(name).ops if isinstance(op.attrs, ops.STARTABLE)]
    return [attrs.collective if isinstance(attrs, ops.Coalesced) else attrs.kind for attrs in found]


def test_parameters_are_gathered_ahead_and_gradients_scattered_behind() -> None:
    program = plan_of(ZERO).program
    there, back = cut(program, False), cut(program, True)
    assert kinds(program, there.ahead) == kinds(program, back.ahead) == ["all_gather"]
    assert kinds(program, back.behind) == ["reduce_scatter"]
    assert not there.behind
    assert not any(kinds(program, scan.function) for scan in (there, back))


def test_what_waits_in_host_memory_is_put_away_behind_and_fetched_ahead() -> None:
    program = plan_of(AWAY).program
    there, back = cut(program, False), cut(program, True)
    away, home = kinds(program, there.behind), kinds(program, back.ahead)
    assert away == ["to_host"] * len(away)
    assert home == ["from_host"] * len(away)
    assert away
    assert not any(kinds(program, scan.function) for scan in (there, back))


# When.


class Recorder:
    """A communicator of one process that stands for all, which notes what begins and ends."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def begin(axes: tuple[str, ...], *given: Any) -> Any:
            what = given[0] if name == "coalesced" else name
            self.events.append(f"begin {what}")
            return Noted(self.events, what)

        return begin


class Noted:
    """A transfer that is through when it is waited for."""

    def __init__(self, events: list[str], what: str) -> None:
        self.events, self.what = events, what

    def wait(self) -> None:
        self.events.append(f"end {self.what}")


class Noting(Executor):
    """An executor that notes when each turn of a cut stack runs."""

    def beside(
        self, ahead: Sequence[Side], turns: Sequence[Callable[[], None]], behind: Sequence[Side]
    ) -> None:
        assert isinstance(self.comm, Recorder)
        events = self.comm.events

        def noted(number: int, run: Callable[[], None]) -> Callable[[], None]:
            def turn() -> None:
                events.append(f"turn {number}")
                run()

            return turn

        events.append("stack")
        super().beside(ahead, [noted(*pair) for pair in enumerate(turns)], behind)
        events.append("done")


def stack_events(names: tuple[str, ...]) -> list[list[str]]:
    """What happens in each stack of a step, in order."""
    plan = plan_of(names)
    recorder: Any = Recorder()
    executor = Noting(plan, schedule_text(plan), 0, recorder)
    executor.run("train", step=1)
    found: list[list[str]] = []
    for event in recorder.events:
        if event == "stack":
            found.append([])
        elif found and "done" not in found[-1]:
            found[-1].append(event)
    return found


def test_each_layer_but_the_first_is_gathered_before_the_layer_before_it_computes() -> None:
    there, back = stack_events(("zero 3",))
    gathers = [n for n, event in enumerate(there) if event == "begin all_gather"]
    ends = [n for n, event in enumerate(there) if event == "end all_gather"]
    turns = [there.index(f"turn {layer}") for layer in range(LAYERS)]
    assert len(gathers) == len(ends) == len(turns) == LAYERS
    for layer in range(1, LAYERS):
        assert gathers[layer] < turns[layer - 1] < ends[layer] < turns[layer]
    scatters = [n for n, event in enumerate(back) if event == "begin reduce_scatter"]
    ends = [n for n, event in enumerate(back) if event == "end reduce_scatter"]
    turns = [back.index(f"turn {layer}") for layer in range(LAYERS)]
    assert len(scatters) == len(ends) == LAYERS
    for layer in range(LAYERS - 1):
        assert turns[layer] < scatters[layer] < turns[layer + 1] < ends[layer]


def test_turns_at_the_end_may_have_no_sides() -> None:
    """As where a function of its own does all work of the last turn."""
    events: list[str] = []

    def side(what: str, number: int) -> Side:
        def begin() -> tuple[()]:
            events.append(f"{what}{number}<")
            return ()

        return Side(begin, lambda begun: events.append(f"{what}{number}>"))

    turns = [lambda n=n: events.append(str(n)) for n in range(3)]
    beside([side("a", n) for n in range(2)], turns, [side("b", n) for n in range(2)])
    assert " ".join(events) == "a0< a0> a1< 0 b0< a1> 1 b0> b1< 2 b1>"


# The same numbers.


@pytest.fixture(scope="module")
def wanted() -> dict[str, Any]:
    """What a step without offloading gives."""
    spec, program = before(())
    plan = make_plan(program, spec, CPU)
    return results(Executor(plan, schedule_text(plan)), "train", arguments(plan.program, "train"))


def found(source: str, plan: Plan) -> dict[str, Any]:
    """What the generated code gives."""
    return results(Executor(plan, source), "train", arguments(plan.program, "train"))


def test_a_step_whose_values_are_fetched_ahead_is_the_same(wanted: dict[str, Any]) -> None:
    plan = plan_of(AWAY)
    assert faults(plan) == []
    given = found(schedule_text(plan), plan)
    assert all(np.array_equal(given[name], value) for name, value in wanted.items())
    assert plan.host_bytes == plan_of(AWAY, None).host_bytes > 0


@pytest.mark.parametrize("bug", ["the wrong layer", "one buffer", "too early"])
def test_a_planted_bug_changes_the_numbers(bug: str, wanted: dict[str, Any]) -> None:
    """Each is one change of the generated code."""
    plan = plan_of(AWAY)
    lines = schedule_text(plan).splitlines()
    (at,) = [n for n, line in enumerate(lines) if "_ahead = [bind_layer_backward" in line]
    if bug == "the wrong layer":
        assert "[5 - i]" in lines[at]
        lines[at] = lines[at].replace("[5 - i]", "[(6 - i) % 6]")
    elif bug == "one buffer":
        lines[at] = lines[at].replace("[i % 2]", "[0]")
    else:
        (end,) = [n for n, line in enumerate(lines) if "rt.beside" in line and "_ahead, " in line]
        label = lines[end].split("(")[1].split("_ahead")[0]
        lines[end] = lines[end].replace(f"{label}_ahead", f"{label}_ahead[1:]")
    given = found("\n".join(lines), plan)
    assert any(not np.array_equal(given[name], value) for name, value in wanted.items())


def test_a_transfer_that_nobody_waits_for_is_told() -> None:
    plan = plan_of(AWAY)
    source = schedule_text(plan).replace("rt.wait(w", "id(w", 1)
    with pytest.raises(InternalError, match="ends with 6 transfers under way"):
        found(source, plan)


# The rules, the bound and the times.


@pytest.mark.parametrize("names", [("zero 3", "frozen"), ("lora", "zero 3"), ("zero 3", "tensor")])
def test_other_techniques_stay_the_same_to_the_last_bit(names: tuple[str, ...]) -> None:
    _, program = before(names)
    after = OVERLAP.run(program, CX)
    given = arguments(program, "train")
    wanted, found = evaluate(program, "train", given), evaluate(after, "train", given)
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


def test_the_last_turn_of_its_own_does_the_work_of_all_three() -> None:
    _, program = before(("zero 3", "frozen"))
    final = cut(OVERLAP.run(program, CX), True).final
    assert final == cut(program, True).final != ""
    assert "all_gather" in kinds(program, final)


def test_what_runs_beside_a_turn_starts_something() -> None:
    program = plan_of(("zero 3",)).program
    name = cut(program, False).ahead
    ahead = program.function(name)
    sources = {op.results: op.operands for op in ahead.ops if isinstance(op.attrs, ops.Wait)}
    (begun,) = sources.values()
    bare = structs.replace(
        ahead,
        ops=ahead.ops[:-1],
        results=begun,
        types=ahead.types[: begun[-1] + 1],
    )
    texts = [fault.text for fault in broken_rules(program.with_functions(bare))]
    assert f"{name} waits for nothing, so nothing of it runs beside other turns" in texts


def test_no_more_passes_than_the_limit() -> None:
    _, program = before(ZERO)
    after = Overlap(in_flight_mib=0, target=CPU).run(program, CX)
    assert not any(scan.ahead or scan.behind for scan in scans(after))
    after = structs.replace(OVERLAP, stacks=False).run(program, CX)
    assert not any(scan.ahead or scan.behind for scan in scans(after))


def test_less_is_exposed_and_all_is_moved() -> None:
    _, program = before(ZERO)
    decisions: list[str] = []
    cx = Context(Mesh(), lambda _: None, lambda decision: decisions.append(decision.subject))
    after = OVERLAP.run(program, cx)
    before_, now = (exposure(each, "train", CPU) for each in (program, after))
    assert before_.exposed == before_.moved == pytest.approx(now.moved)
    assert now.exposed < before_.exposed
    assert now.work == pytest.approx(before_.work)
    assert decisions[0] == "transfers"
    sides = [cut(after, False).ahead, cut(after, True).ahead, cut(after, True).behind]
    assert decisions[1:] == [f"body ({name})" for name in sides]
