"""trim-last: in its last turn the backward pass of a stack ends at the lowest op that trains."""

from __future__ import annotations

import numpy as np
import pytest

from fllmc.ir.evaluate import evaluate
from fllmc.ir.flops import op_flops
from fllmc.ir.ops import Attend, AttendGrad, Dot, Fused, Scan
from fllmc.ir.program import Program
from fllmc.ir.settings import Lora
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.walk import calls_of
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.fuse import Fuse
from fllmc.passes.layout import Layout
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.place.place import Place
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.sink_sums import SinkSums
from fllmc.passes.trim_last import TrimLast
from tests.codegen.running import check, planned
from tests.passes.training_programs import arguments, llama, run

ALL = ("*",)
TUNED = ("body.*.attn.wo", "body.*.mlp.down", "body.*.mlp_norm.scale")


def plan_level(freeze: tuple[str, ...] = (), tune: tuple[str, ...] = ()) -> Program:
    """The training step at the plan level, before its last turns are trimmed."""
    updates = (Lora("body.*.attn.wv", 2, 4.0),) if tune == ("lora",) else ()
    adapted = ApplyAdapter(freeze, () if updates else tune, updates)
    steps = ApplyLoss(), Differentiate(), Accumulate(reduce="f64"), OptimizerStep(), ShareEqual()
    made = run(llama(), adapted, ShareEqual(), *steps, DropUnused(), Place())
    return run(made, Layout(), SinkSums(), Fuse(), DropUnused())


def backward(program: Program) -> Scan:
    """The backward scan of the stack."""
    ops = [op.attrs for op in program.function("train").ops if isinstance(op.attrs, Scan)]
    (found,) = [attrs for attrs in ops if attrs.reverse]
    return found


@pytest.mark.parametrize("tune", [*((one,) for one in TUNED), TUNED, ("lora",)])
def test_the_last_turn_gives_the_same_and_does_less(tune: tuple[str, ...]) -> None:
    before = plan_level(ALL, tune)
    after = run(before, TrimLast())
    scan = backward(after)
    assert scan.final == "layer.backward.last"
    body, last = after.function(scan.function), after.function(scan.final)
    assert last.results[0] == 0  # the carry is handed through
    count = {f.name: sum(op_flops(f, op, after.sizes) for op in f.ops) for f in (body, last)}
    assert count[last.name] < count[body.name]
    given = arguments(before, "train") | {"step": 2.0}
    given = {name: np.abs(value) if "#v" in name else value for name, value in given.items()}
    expected, found = evaluate(before, "train", given), evaluate(after, "train", given)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())
    assert parse_program(print_program(after)) == after


def test_of_a_single_turn_the_trimmed_function_is_the_only_one() -> None:
    before = plan_level(ALL, TUNED).with_dim("layers", 1)
    after = run(before, TrimLast())
    scan = backward(after)
    assert (scan.function, scan.final) == ("layer.backward.last", "")
    assert "layer.backward" not in {function.name for function in after.functions}
    given = arguments(before, "train") | {"step": 2.0}
    given = {name: np.abs(value) if "#v" in name else value for name, value in given.items()}
    expected, found = evaluate(before, "train", given), evaluate(after, "train", given)
    assert all(np.array_equal(found[name], value) for name, value in expected.items())


def test_nothing_below_the_lowest_trained_op_runs_backward_in_the_first_layer() -> None:
    after = run(plan_level(ALL, ("body.*.mlp.down",)), TrimLast())
    last = after.function("layer.backward.last")
    groups = [after.function(op.attrs.function) for op in last.ops if isinstance(op.attrs, Fused)]
    paths = {op.path for function in (last, *groups) for op in function.ops if op.path}
    assert paths <= {"mlp.down", "mlp.swiglu"}, paths
    assert not any(isinstance(op.attrs, AttendGrad | Attend) for op in last.ops)
    # The one product left is that of the weight's gradient, of kept values.
    dots = [op for op in last.ops if isinstance(op.attrs, Dot)]
    assert [op.attrs.contract for op in dots if isinstance(op.attrs, Dot)] == [("batch", "seq")]


def test_a_cotangent_that_is_read_is_computed() -> None:
    for tune in (("embedding",), ("embedding", "body.*.mlp.down")):
        before = plan_level(ALL, tune)
        assert run(before, TrimLast()) == before
    whole = plan_level()
    assert run(whole, TrimLast()) == whole


def test_turns_are_counted_once() -> None:
    after = run(plan_level(ALL, ("body.*.attn.wo",)), TrimLast())
    op = next(op for op in after.function("train").ops if op.attrs == backward(after))
    layers = after.sizes.size("layers")
    assert list(calls_of(op, after.sizes)) == [
        ("layer.backward", layers - 1),
        ("layer.backward.last", 1),
    ]


@pytest.mark.parametrize("tune", [*((one,) for one in TUNED), TUNED, ("lora",)])
def test_generated_code_gives_the_same(tune: tuple[str, ...]) -> None:
    check(planned(plan_level(ALL, tune), TrimLast()))
