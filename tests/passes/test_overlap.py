"""Transfers run beside computation: the same numbers, and nothing in flight is touched."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.storage_classes import Classes
from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.frontend.targets import load_target
from fllmc.ir import ops
from fllmc.ir.evaluate import evaluate
from fllmc.ir.plan import Plan
from fllmc.ir.program import Function, Program
from fllmc.ir.settings import Spec
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Mesh
from fllmc.ir.verify import verify
from fllmc.ir.walk import waits
from fllmc.passes.base import Context
from fllmc.passes.flights import Finder, Flight
from fllmc.passes.overlap import Overlap
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.roofline import times
from fllmc.passes.runner import run_pipeline
from tests.codegen.overlaps import faults
from tests.oracle.techniques import combined
from tests.specs.evaluated import arguments

CASES = (
    ("zero 3",),
    ("zero 3", "accumulate"),
    ("zero 2", "tensor", "sequence"),
    ("zero 3", "offload"),
    ("context exchange", "data"),
    ("experts",),
)
CPU = load_target("cpu")
OVERLAP = Overlap(target=CPU)
CX = Context(Mesh(), lambda _: None)


@cache
def before(names: tuple[str, ...]) -> tuple[Spec, Program]:
    """A small model with these techniques, at the end of all other passes."""
    case = combined(names, "f64")
    spec, _, _ = load("small.fllm", text=case.text)
    assert spec is not None
    mesh = parse_mesh(case.mesh, Mesh())[0] if case.mesh != "1" else Mesh()
    cx = Context(mesh, lambda _: None)
    return spec, run_pipeline(spec.program, standard_pipeline(spec), cx, lambda: 0.0)[0]


def planned(names: tuple[str, ...]) -> Plan:
    """The plan of the same with its transfers beside computation."""
    spec, program = before(names)
    return make_plan(OVERLAP.run(program, CX), spec, CPU)


def overlapped(function: Function) -> dict[int, int]:
    """The ops of a function that are started, with the computing ops until they are waited for."""
    moves = (ops.Fill, ops.Rename, ops.Wait, *ops.STARTABLE)
    return {
        start: sum(not isinstance(op.attrs, moves) for op in function.ops[start:end])
        for end, start in waits(function).items()
    }


def scans(program: Program) -> list[ops.Scan]:
    """All scans of a program."""
    found = [op.attrs for function in program.functions for op in function.ops]
    return [attrs for attrs in found if isinstance(attrs, ops.Scan)]


@pytest.mark.parametrize("names", CASES, ids=" + ".join)
def test_the_numbers_stay_the_same_to_the_last_bit(names: tuple[str, ...]) -> None:
    _, program = before(names)
    after = OVERLAP.run(program, CX)
    verify(after)
    assert parse_program(print_program(after)) == after
    given = arguments(program)
    wanted, found = evaluate(program, "train", given), evaluate(after, "train", given)
    assert wanted.keys() == found.keys()
    assert all(np.array_equal(found[name], value) for name, value in wanted.items())


@pytest.mark.parametrize("names", CASES, ids=" + ".join)
def test_work_stands_between_each_start_and_its_wait(names: tuple[str, ...]) -> None:
    plan = planned(names)
    beside = {name for scan in scans(plan.program) for name in (scan.ahead, scan.behind)}
    others = [f for f in plan.program.functions if f.name not in beside]
    begun = [count for function in others for count in overlapped(function).values()]
    assert begun or beside != {""}
    assert all(begun)


@pytest.mark.parametrize("names", CASES, ids=" + ".join)
def test_what_is_in_flight_is_touched_by_nothing(names: tuple[str, ...]) -> None:
    assert faults(planned(names)) == []


def test_a_buffer_that_is_free_too_early_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: what a started op takes is free once it is started."""
    whole = Classes.__init__

    def short(self: Classes, function: Function) -> None:
        whole(self, function)
        self.last, self.until = list(self.read), {}

    monkeypatch.setattr(Classes, "__init__", short)
    found = [fault for names in CASES for fault in faults(planned(names))]
    assert any("in flight" in fault for fault in found)


def test_a_wait_behind_the_first_use_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: every wait is an op too late."""
    whole = Finder.flights

    def late(self: Finder) -> dict[int, Flight]:
        return {at: f._replace(end=f.end + 1) for at, f in whole(self).items()}

    monkeypatch.setattr(Finder, "flights", late)
    _, program = before(("zero 3",))
    with pytest.raises(KeyError):  # the value is not there yet where it is used
        OVERLAP.run(program, CX)


def test_no_more_is_in_flight_than_the_limit() -> None:
    _, program = before(("zero 2", "tensor", "sequence"))
    assert Overlap(in_flight_mib=0, target=CPU).run(program, CX) == program
    train = program.function("train")
    finder = Finder(train, program, times(program, train, CPU), 1 << 30)
    largest = max(finder.flights(), key=finder.bytes)
    less = Finder(train, program, finder.seconds, finder.bytes(largest) - 1).flights()
    assert largest not in less
    assert less


def test_what_pipeline_stages_exchange_stays_where_it_is() -> None:
    _, program = before(("zero 3",))
    train = program.function("train")
    finder = Finder(train, program, times(program, train, CPU), 1 << 30)
    assert finder.flights()
    finder = Finder(train, program, finder.seconds, 1 << 30)
    finder.pipes = {"fsdp"}
    assert finder.flights() == {}
