"""The generated schedule: how results get where they belong, what it allocates, and its bytes."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from msgspec import structs
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fllmc.codegen.artifact import plan_bytes
from fllmc.codegen.schedule import schedule_text
from fllmc.driver import compile_spec
from fllmc.ir import host_math, ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.program import Function, Program
from fllmc.ir.types import Sizes, tensor
from fllmc.runtime.executor import Executor
from tests.codegen.overlaps import faults
from tests.codegen.running import arguments, check, give, hand_made, planned

SIZES = Sizes({"batch": 4, "embed": 3, "layers": 3, "deep": 2, "microbatches": 3})
X = tensor("f64", "batch", "embed")
STACKED = tensor("f64", "layers", "batch", "embed")
TRANSIENTS = {
    "attend": "the blocked attention kernel returns its results",
    "attend_grad": "the blocked attention kernel returns its results",
    "_packed": "operands whose rows it can't read",
    "_held": "positions and whether they are held, one element a token",
    "pick": "which positions are held",
    "spread": "the values that are held",
    "put_add": "rows that are held",
    "take": "which positions are held",
}
"""What allocates in a step, by the kernel's function."""


class Allocations(TorchDispatchMode):
    """Counts the calls that give tensors outside an arena, by function of `kernels/`."""

    def __init__(self, executor: Executor) -> None:
        super().__init__()
        begin = executor.arena.data_ptr()
        self.arena = range(begin, begin + executor.arena.numel() + 1)
        self.counted: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in _tensors((args, kwargs))}
        for tensor_ in _tensors(found):
            place = tensor_.untyped_storage().data_ptr()
            if tensor_.data_ptr() not in self.arena and place not in given and tensor_.numel():
                self.counted[_kernel(sys._getframe()) or str(func)] += 1
        return found


def _tensors(tree: Any) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def _kernel(frame: FrameType | None) -> str:
    """The name of the innermost function of `kernels/` that is running."""
    while frame is not None:
        if Path(frame.f_code.co_filename).parent.name == "kernels":
            return frame.f_code.co_name
        frame = frame.f_back
    return ""


def counted(name: str, batch: int) -> Counter[str]:
    compiled = compile_spec(name, "", {"data.batch": str(batch), "data.seq": "8"})
    executor = Executor(compiled.plan, compiled.source)
    executor.run("train", **give(executor, arguments(compiled.plan.program, "train")))
    with Allocations(executor) as seen:
        executor.run("train")
    return seen.counted


@pytest.mark.parametrize("name", ["tiny_llama", "tiny_gpt"])
def test_a_step_allocates_in_kernels_alone(name: str) -> None:
    found = counted(name, 4)
    assert set(found) <= set(TRANSIENTS)
    assert counted(name, 12) == found


# Entries whose results do not stay where they are made.


def test_results_that_change_places() -> None:
    """Two parameters that swap, and a state that follows one of them."""
    b = Builder("main", SIZES)
    p, q, o = b.input("p", X, "param"), b.input("q", X, "param"), b.input("o", X, "state")
    program = hand_made(b, [q, p, b.add(p, o)], ["p", "q", "o"])
    made = planned(program)
    check(made)
    assert [s.name for s in made.plan.stored if s.name.endswith("'")] == ["p'", "q'"]


@pytest.mark.parametrize("first", [True, False])
def test_a_state_that_keeps_the_old_parameter(first: bool) -> None:
    b = Builder("main", SIZES)
    p, old = b.input("p", X, "param"), b.input("p#old", X, "state")
    new = b.sub(b.mul(p, b.constant(0.5)), old)
    results, names = [new, p], ["p", "p#old"]
    check(
        planned(hand_made(b, results if first else results[::-1], names if first else names[::-1]))
    )


def test_one_value_as_several_results() -> None:
    b = Builder("main", SIZES)
    p, x = b.input("p", X, "param"), b.input("x", X, "data")
    new = b.add(p, x)
    alias = b.one(ops.Stop(), new)
    check(planned(hand_made(b, [new, new, alias, x, b.constant(2.5)], ["p", "y", "z", "w", "n"])))


# Stacks.


def stack(
    body: Function, carries: int, count: int, over: str = "layers", **options: Any
) -> Program:
    """`main` scans the body: its first inputs are carries, the next `count` slices."""
    b = Builder("main", SIZES, {body.name: body.signature})
    given: list[int] = []
    for number, kind in enumerate(body.types[: len(body.inputs)]):
        sliced = carries <= number < carries + count
        kind = tensor("f64", over, *kind.names) if sliced else kind
        given.append(b.one(ops.Sin(), b.input(f"x{number}", kind)))
    found = b.emit(ops.Scan(body.name, over, carries, count, **options), *given)
    program = hand_made(b, list(found))
    return program.with_functions(program.function("main"), body)


@pytest.mark.parametrize("over", ["layers", "deep"])
@pytest.mark.parametrize("reverse", [False, True])
def test_stacks_with_odd_bodies(over: str, reverse: bool) -> None:
    """Carries that swap, that stay, that are also stacked; slices updated, handed on, both."""
    b = Builder("body", SIZES)
    one, two, same = (b.input(n, X) for n in ("one", "two", "same"))
    grown, seen, fixed = (b.input(n, X) for n in ("grown", "seen", "fixed"))
    new = b.add(grown, b.mul(one, fixed))
    alias = b.one(ops.Stop(), seen)
    mixed = b.add(two, b.one(ops.Tanh(), new))
    results = [mixed, one, same, new, seen, alias, new, two, b.constant(1.5)]
    body = b.finish(results, [f"r{number}" for number in range(len(results))])
    made = planned(stack(body, 3, 2, over, reverse=reverse))
    assert faults(made.plan) == []
    check(made)


@pytest.mark.parametrize("swap", [False, True])
def test_micro_batches_with_carries(swap: bool) -> None:
    """Their slices are copied in, and only carries come out."""
    b = Builder("body", SIZES)
    total, last = b.input("total", X), b.input("last", X)
    part = b.input("part", X)
    new = b.add(total, b.mul(part, last))
    body = b.finish([part if swap else new, new if swap else part], ["total", "last"])
    made = planned(stack(body, 2, 1, "microbatches"))
    assert faults(made.plan) == []
    check(made)


def test_numbers_go_into_a_stack() -> None:
    """A host scalar that the body takes as a tensor, as a number, and as a carry."""
    b = Builder("body", SIZES)
    carry, count = b.input("carry", X), b.input("count", tensor("f64"))
    rate, step = b.input("rate", tensor("f64")), b.input("step", tensor("f64"), "host")
    grown = b.mul(b.add(carry, b.mul(rate, step)), step)
    body = b.finish([grown, b.add(count, rate)], ["carry", "count"])
    m = Builder("main", SIZES, {"body": body.signature})
    x, number = m.input("x", X), m.input("step", tensor("f64"), "host")
    half = m.mul(number, m.constant(0.5))
    found = m.emit(ops.Scan("body", "layers", 2, 0), x, m.constant(0.0), half, number)
    program = hand_made(m, list(found))
    check(planned(program.with_functions(program.function("main"), body)))


# Host arithmetic.


def test_constants_are_folded_and_infinite_ones_written() -> None:
    b = Builder("main", SIZES)
    x, step = b.input("x", X), b.input("step", tensor("f64"), "host")
    infinite = b.div(b.constant(1.0), b.constant(0.0))
    late = b.one(ops.Minimum(), b.div(step, b.sub(step, step)), b.constant(2.0))
    low = b.one(ops.Maximum(), b.neg(infinite), step)
    made = planned(hand_made(b, [b.one(ops.Minimum(), x, infinite), b.mul(x, low), late]))
    check(made)
    assert 'float("inf")' in made.source
    assert "host.div" in made.source


@pytest.mark.parametrize(
    ("function", "given", "wanted"),
    [
        (host_math.div, (-1.0, 0.0), "-inf"),
        (host_math.div, (0.0, 0.0), "nan"),
        (host_math.power, (-8.0, 1 / 3), "nan"),
        (host_math.power, (10.0, 400.0), "inf"),
        (host_math.power, (-10.0, 401.0), "-inf"),
        (host_math.power, (0.0, -2.0), "inf"),
        (host_math.exp, (1e3,), "inf"),
        (host_math.log, (0.0,), "-inf"),
        (host_math.log, (-1.0,), "nan"),
        (host_math.sqrt, (-1.0,), "nan"),
        (host_math.rsqrt, (0.0,), "inf"),
        (host_math.sigmoid, (-1e3,), "0.0"),
        (host_math.sin, (float("inf"),), "nan"),
        (host_math.maximum, (1.0, float("nan")), "nan"),
    ],
)
def test_host_arithmetic_does_not_raise(function: Any, given: Any, wanted: str) -> None:
    assert str(function(*given)) == wanted


# The text.


def test_names_of_a_strangers_plan_do_not_become_code() -> None:
    """A name with a quote stays a string; one with a line break is refused."""
    b = Builder("main", SIZES)
    made = planned(hand_made(b, [b.exp(b.input('x"); import os; ("', X))]))
    namespace: dict[str, Any] = {}
    exec(compile(made.source, "step", "exec"), namespace)
    assert "os" not in namespace
    assert r"\"" in made.source
    program = made.plan.program
    (function,) = (f for f in program.functions if f.name == "main")
    broken = structs.replace(
        function, inputs=(structs.replace(function.inputs[0], name="x\nimport os"),)
    )
    plan = structs.replace(made.plan, program=program.with_functions(broken))
    with pytest.raises(InternalError, match="line break"):
        schedule_text(plan)


def test_functions_whose_names_look_alike() -> None:
    b = Builder("a.b", SIZES)
    one = b.finish([b.exp(b.input("x", X))], ["y"])
    b = Builder("a_b", SIZES)
    two = b.finish([b.neg(b.input("x", X))], ["y"])
    b = Builder("main", SIZES, {f.name: f.signature for f in (one, two)})
    x = b.input("x", X)
    for function in (one, two):
        (x,) = b.emit(ops.Scan(function.name, "layers", 1, 0), x)
    program = hand_made(b, [x])
    check(planned(program.with_functions(program.function("main"), one, two)))


SCRIPT = """
import sys, hashlib
from fllmc.driver import compile_spec
from fllmc.codegen.artifact import plan_bytes
made = compile_spec(sys.argv[1], "", {"data.batch": "4", "data.seq": "8"})
print(hashlib.sha256(plan_bytes(made.plan) + made.source.encode()).hexdigest())
"""


def test_the_same_bytes_everywhere(tmp_path: Path) -> None:
    """Another hash seed, another folder: the same plan and the same code."""
    told: set[str] = set()
    for seed in ("0", "1"):
        folder = tmp_path / seed
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, "tiny_llama"],
            cwd=folder,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        told.add(done.stdout.strip())
    here = compile_spec("tiny_llama", "", {"data.batch": "4", "data.seq": "8"})
    told.add(hashlib.sha256(plan_bytes(here.plan) + here.source.encode()).hexdigest())
    assert len(told) == 1
