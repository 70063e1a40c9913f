"""The verifier refuses what is used, given, or left behind while it is under way."""

from __future__ import annotations

import pytest

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Dim, Sizes, Type
from fllmc.ir.verify import faults, verify
from tests.ir.programs import DIMS, MESH, arguments_for, program_of

DIVIDED = Type("f32", (Dim("batch", ("data",)), Dim("embed")))
GATHER = ops.AllGather("batch", ("data",))
BOTH = ops.Coalesced("all_gather", ("data",), ("batch", "batch"))


def builder() -> tuple[Builder, int, int]:
    b = Builder("main", Sizes(DIMS, MESH))
    return b, b.input("x", DIVIDED), b.input("y", DIVIDED)


def program(b: Builder, *results: int) -> Program:
    names = [f"out{number}" for number in range(len(results))]
    return program_of(b.finish(results, names), level="sharded", mesh=MESH)


def texts(found: Program) -> list[str]:
    return [fault.text for fault in faults(found)]


def test_what_is_started_is_what_it_would_be_at_once() -> None:
    b, x, y = builder()
    begun = b.emit(BOTH, x, y)
    beside = b.one(ops.Tanh(), x)
    first, second = b.emit(ops.Wait(), *begun)
    made = program(b, b.mul(first, second), beside)
    verify(made)
    assert parse_program(print_program(made)) == made
    given = arguments_for(made, 1)
    found = evaluate(made, "main", given)
    assert (found["out0"] == given["x"] * given["y"]).all()


def test_a_pending_value_is_used_by_nothing() -> None:
    b, x, _ = builder()
    begun = b.one(GATHER, x)
    early = b.one(ops.Tanh(), begun)
    (done,) = b.emit(ops.Wait(), begun)
    (text,) = texts(program(b, early, done))
    assert text == f"%{begun} is pending: it is waited for elsewhere"


def test_a_pending_value_is_not_given() -> None:
    b, x, _ = builder()
    begun = b.one(GATHER, x)
    b.emit(ops.Wait(), begun)
    (text,) = texts(program(b, begun))
    assert text == f"%{begun} is given while it is pending"


def test_all_that_one_call_gives_is_waited_for_together() -> None:
    b, x, y = builder()
    first, second = b.emit(BOTH, x, y)
    (done,) = b.emit(ops.Wait(), first)
    found = texts(program(b, done, second))
    assert "what coalesced gives is waited for as a whole" in found
    assert f"%{second} is given while it is pending" in found


def test_nothing_is_waited_for_twice() -> None:
    b, x, _ = builder()
    begun = b.one(GATHER, x)
    pair = [b.emit(ops.Wait(), begun)[0] for _ in range(2)]
    assert texts(program(b, *pair)) == ["what all_gather gives is waited for twice"]


@pytest.mark.parametrize("of", ["an input", "a sum"])
def test_only_transfers_are_waited_for(of: str) -> None:
    b, x, y = builder()
    value = x if of == "an input" else b.add(x, y)
    (done,) = b.emit(ops.Wait(), value)
    assert texts(program(b, done)) == [f"%{value} is not made by an op that can be started"]
