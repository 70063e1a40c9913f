"""Updates of parameters of one kind are one op, and mean what they meant."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.driver import compile_spec
from fllmc.frontend import load
from fllmc.frontend.mesh import parse_mesh
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Bucketed, Transpose
from fllmc.ir.program import Program
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Mesh
from fllmc.ir.verify import faults, verify
from fllmc.passes.base import Context
from fllmc.passes.join_updates import JoinUpdates
from fllmc.passes.pipeline import standard_pipeline
from tests.oracle.techniques import combined
from tests.specs.evaluated import arguments

ADAMW = "adamw(betas: (0.9, 0.95), eps: 1e-4, weight_decay: 0.1)"
OPTIMIZERS = {
    "adamw": ADAMW,
    "adam": "adam(betas: (0.9, 0.95))",
    "sgd": "sgd(momentum: 0.9, nesterov: true)",
    "lion": "lion(weight_decay: 0.1)",
}
HAND_MADE = """
program plan
dims embed=4, ffn=6
entries train

param a: f64[embed, ffn] = zeros() {trainable=true}
param b: f64[ffn] = zeros() {trainable=true}

func train(
    %0 a: f64[embed, ffn] param,
    %1 b: f64[ffn] param,
    %2 x: f64[ffn, embed] data,
    %3 y: f64[ffn, embed] data,
    %4 rate: f64[] host,
) -> (a, b) {
  %5: f64[embed, ffn] = transpose{order=[embed, ffn]}(%2)
  %6: f64[ffn] = sum{dims=[embed]}(%3)
  STEP
  return %11, %12
}
"""


def before_joining(
    *techniques: str, optimizer: str = ADAMW, clip: str = "  clip: 0.5\n"
) -> Program:
    """The plan of a small Llama as it is before its updates are joined."""
    case = combined(techniques)
    text = case.text.replace(ADAMW, optimizer).replace("  clip: 0.5\n", clip)
    if "weight_decay" not in optimizer:
        text = text.replace("  no_decay: [*.scale]\n", "")
    spec, found, _ = load("joined.fllm", text=text)
    assert spec is not None, found
    cx = Context(parse_mesh(case.mesh, Mesh())[0] if techniques else Mesh(), lambda _: None)
    program = spec.program
    for step in standard_pipeline(spec):
        if isinstance(step, JoinUpdates):
            return program
        program = step.run(program, cx)
    raise AssertionError


def joined(program: Program) -> Program:
    """The program with joined updates, verified."""
    found = JoinUpdates().run(program, Context(program.mesh, lambda _: None))
    verify(found)
    return found


def bucketed(program: Program) -> list[Bucketed]:
    """What is joined in a training step."""
    attrs = [op.attrs for op in program.function("train").ops]
    return [each for each in attrs if isinstance(each, Bucketed)]


def steps(program: Program) -> list[Bucketed]:
    """Those that step parameters."""
    return [b for b in bucketed(program) if "param" in program.function(b.function).outputs]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "techniques",
    [(), ("data", "tensor"), ("zero 1", "accumulate"), ("zero 3", "tensor"), ("lora", "zero 2")],
    ids=" + ".join,
)
def test_a_step_stays_what_it_is(techniques: tuple[str, ...], optimizer: str) -> None:
    before = before_joining(*techniques, optimizer=OPTIMIZERS[optimizer])
    after = joined(before)
    assert bucketed(after)
    given = arguments(before)
    wanted, found = evaluate(before, "train", given), evaluate(after, "train", given)
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        # The squares of gradients are added up in another order.
        np.testing.assert_allclose(found[name], value, rtol=1e-13, atol=1e-15, err_msg=name)


def test_without_clipping_no_bit_changes() -> None:
    before = before_joining("zero 1", clip="")
    given = arguments(before)
    after = joined(before)
    assert len(steps(after)) == 3
    wanted, found = (evaluate(program, "train", given) for program in (before, after))
    for name in wanted.keys() - {"grad_norm"}:
        assert np.array_equal(found[name], wanted[name]), name


def test_each_kind_of_parameter_is_one_bucket() -> None:
    program = joined(before_joining("data", "tensor"))
    kinds = {
        p.name: (p.decays, p.stack, frozenset(p.type.axes))
        for p in (before_joining("data", "tensor")).parameters
    }
    counted = Counter(kinds.values())
    regions = [set(each.regions) for each in steps(program)]
    wanted = [{n for n, k in kinds.items() if k == kind} for kind, n in counted.items() if n > 1]
    assert sorted(map(sorted, regions)) == sorted(map(sorted, wanted))


def test_nothing_that_is_frozen_is_in_a_bucket() -> None:
    program = joined(before_joining("frozen", "zero 1"))
    trained = {p.name for p in program.parameters if p.trainable}
    assert {name for each in bucketed(program) for name in each.regions} <= trained


def test_squares_are_added_up_by_one_op_a_bucket() -> None:
    before = before_joining("data")
    program = joined(before)
    sums = [b.bucket for b in bucketed(program) if "sum" in program.function(b.function).outputs]
    assert sorted(sums) == sorted(b.bucket for b in steps(program))


def test_regions_of_odd_sizes_come_last() -> None:
    program = joined(before_joining("tensor"))
    sizes = program.sizes
    for each in steps(program):
        odd = [sizes.local_bytes(program.parameter(n).type) % 64 != 0 for n in each.regions]
        assert odd == sorted(odd)


def hand_made(*lines: str) -> Program:
    """A step of two parameters in these lines, which make %7 to %12."""
    return parse_program(HAND_MADE.replace("STEP", "\n  ".join(lines)))


def test_equal_equations_are_joined() -> None:
    before = hand_made(
        "%7: f64[embed, ffn] = mul(%5, %4)",
        "%8: f64[ffn] = mul(%6, %4)",
        "%9: f64[embed, ffn] = exp(%7)",
        "%10: f64[ffn] = exp(%8)",
        "%11: f64[embed, ffn] = sub(%0, %9)",
        "%12: f64[ffn] = sub(%1, %10)",
    )
    (found,) = steps(joined(before))
    assert found.regions == ("a", "b")


@pytest.mark.parametrize(
    "last",
    ["%12: f64[ffn] = add(%1, %10)", "%12: f64[ffn] = sub(%10, %1)"],
)
def test_other_equations_are_not(last: str) -> None:
    before = hand_made(
        "%7: f64[embed, ffn] = mul(%5, %4)",
        "%8: f64[ffn] = mul(%6, %4)",
        "%9: f64[embed, ffn] = exp(%7)",
        "%10: f64[ffn] = exp(%8)",
        "%11: f64[embed, ffn] = sub(%0, %9)",
        last,
    )
    assert joined(before) == before


def test_a_step_that_mixes_elements_stays() -> None:
    before = hand_made(
        "%7: f64[embed] = sum{dims=[ffn]}(%5)",
        "%8: f64[] = sum{dims=[ffn]}(%6)",
        "%9: f64[embed, ffn] = sub(%5, %7)",
        "%10: f64[ffn] = sub(%6, %8)",
        "%11: f64[embed, ffn] = sub(%0, %9)",
        "%12: f64[ffn] = sub(%1, %10)",
    )
    assert joined(before) == before


def test_work_that_mixes_elements_or_uses_its_own_sums_is_refused() -> None:
    program = joined(before_joining("data"))
    square = next(b for b in bucketed(program) if b not in steps(program))
    body = program.function(square.function)
    product, total = body.ops
    kinds = [body.types[value] for value in (0, *product.results, *total.results)]
    alone = replace(total, operands=(0,), results=(1,))
    spread = replace(product, operands=(0, 1), results=(2,))
    again = replace(total, operands=(2,), results=(3,))
    wrong = replace(body, ops=(alone, spread, again), results=(3,))
    wrong = replace(wrong, types=(kinds[0], kinds[2], kinds[1], kinds[2]))
    shown = [fault.text for fault in faults(program.with_functions(wrong))]
    assert any("a sum over a part of the bucket" in text for text in shown), shown
    turned = replace(product, attrs=Transpose((square.bucket,)), operands=(0,))
    shown = [f.text for f in faults(program.with_functions(replace(body, ops=(turned, total))))]
    assert any("is not elementwise" in text for text in shown), shown


def test_text_of_a_bucket_reads_back() -> None:
    program = joined(before_joining("zero 3"))
    assert parse_program(print_program(program)) == program


def test_updates_are_fewer_than_parameters() -> None:
    compiled = compile_spec("llama3_8b", mesh="8x4")
    program = compiled.plan.program
    assert len(steps(program)) == 2
    assert sorted(len(each.regions) for each in steps(program)) == [2, 7]
