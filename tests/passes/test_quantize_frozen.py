"""Frozen maps in few bits: the step on what codes stand for, and none of it kept or moved wide."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.fitting import within_budget
from fllmc.frontend.targets import load_target
from fllmc.ir.coded import SCALES, codes_of, owner_name, uncut
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import AllGather, Dequantize, Scan, Take
from fllmc.ir.program import Program
from fllmc.ir.settings import Adapter, Lora, Quantize, Rows, Schedule, Shard
from fllmc.ir.span import Span
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context, Pass
from fllmc.passes.decisions import decisions
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.place.place import Place
from fllmc.passes.quantize_frozen import QuantizeFrozen
from fllmc.passes.recompute import Recompute
from fllmc.passes.recompute_stacks import scan_of, stacks
from fllmc.passes.roofline import op_seconds
from fllmc.passes.runner import run_pipeline
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.split_rows import SplitRows
from fllmc.passes.store_frozen import StoreFrozen
from tests.ir.blockwise import coded, packed
from tests.oracle.techniques import combined
from tests.passes.memory_specs import text
from tests.passes.pipelined import sharded
from tests.passes.training_programs import arguments, jax_gradients, llama, relative, run
from tests.specs.random_specs import Drawn
from tests.specs.stages import load_drawn

UPDATES = (Lora("body.*.attn.{wq, wo}", 2, 4.0), Lora("embedding", 2, 4.0))
MAPS = "body.*.{attn, mlp}"
PLACE = Span("s.fllm", 10, 20, 1, 1, 1, 11)


def directive(bits: int = 8, selector: str = MAPS, block: int = 2, along: str = "") -> Quantize:
    return Quantize(selector, bits, block, along, PLACE)


def base(lora: tuple[Lora, ...] = UPDATES, tune: tuple[str, ...] = ()) -> Program:
    """Everything frozen but low-rank updates, in f64; ffn of 6, so that all dims are even."""
    program = llama().with_dim("ffn", 6)
    scales = tuple(
        replace(p, plain=p.name.endswith(("scale", "mixing"))) for p in program.parameters
    )
    return run(replace(program, parameters=scales), ApplyAdapter(("*",), tune, lora))


def trained(program: Program) -> Program:
    """The whole training step of two micro-batches."""
    steps = ApplyLoss(), Differentiate(), Accumulate(2), OptimizerStep(), Recompute()
    return run(program, ShareEqual(), *steps, DropUnused())


def rounded(program: Program, given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments with what the codes stand for, and with codes and scales, by hand."""
    narrow = {name: value for name, value in given.items() if name not in owners(program)}
    wide = dict(given)
    for codes in codes_of(program.parameters):
        name, at = owner_name(codes), list(map(uncut, codes.type.names)).index(codes.along)
        found = coded(given[name], at, codes.block, codes.bits)
        wide[name] = found.value
        narrow[codes.name] = packed(found.codes, at) if codes.bits == 4 else found.codes
        narrow[f"{name}.{SCALES}"] = found.scales
    return wide, narrow


def owners(program: Program) -> set[str]:
    return {owner_name(codes) for codes in codes_of(program.parameters)}


@pytest.mark.parametrize("bits", [4, 8])
def test_the_step_is_that_of_what_the_codes_stand_for(bits: int) -> None:
    every = directive(bits, "*", 2)
    first, second = base(), run(base(), QuantizeFrozen((every,)), StoreFrozen("f64"))
    assert len(owners(second)) == 8
    plain, quantized = trained(first), trained(second)
    given = arguments(plain, "train") | {"step": 3.0}
    wide, narrow = rounded(quantized, given)
    expected, found = evaluate(plain, "train", wide), evaluate(quantized, "train", narrow)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-11, atol=1e-13, err_msg=name)
    assert abs(evaluate(plain, "train", given)["loss"] - expected["loss"]) > 1e-6


@pytest.mark.parametrize("bits", [4, 8])
def test_gradients_of_updates_beside_codes_are_those_of_jax(bits: int) -> None:
    forward = run(base(), QuantizeFrozen((directive(bits, "*"),)), ShareEqual(), ApplyLoss())
    program = run(forward, Differentiate())
    given = {**arguments(base(), "model"), **arguments(program, "gradient"), "seed": 1.0}
    held = rounded(program, given)[1]
    inputs = {name: [i.name for i in program.function(name).inputs] for name in program.entries}
    names = [p.name for p in program.parameters if p.trainable]
    found = evaluate(program, "gradient", {name: held[name] for name in inputs["gradient"]})
    own = {name: held[name] for name in inputs["forward"]}
    wanted = jax_gradients(forward, own, names)
    assert len(names) == 6
    for name in names:
        assert relative(found[f"grad.{name}"], wanted[name]) < 1e-10, name


@pytest.mark.parametrize("last", [(), (Recompute(),), (Recompute(cheap=False),)])
def test_a_layer_is_made_of_its_codes_in_the_body_that_uses_it_and_never_kept(
    last: tuple[Pass, ...],
) -> None:
    coded_one = run(base(), QuantizeFrozen((directive(4),)), StoreFrozen("f64"), ShareEqual())
    program = run(coded_one, ApplyLoss(), Differentiate(), *last, DropUnused())
    backward = program.function("layer.backward")
    made = {op.path for op in backward.ops if isinstance(op.attrs, Dequantize)}
    assert len(made) == 7
    for function in program.functions:
        made_here = (op.results for op in function.ops if isinstance(op.attrs, Dequantize))
        assert {value for (value,) in made_here}.isdisjoint(function.results), function.name
    for name in ("forward", "backward"):
        body = program.function(f"layer.{name}")
        wide = {given.name for given in body.inputs if given.role == "param"} & {"attn.wq"}
        assert not wide


def test_of_a_table_only_what_is_looked_up_is_made() -> None:
    program = run(base(lora=()), QuantizeFrozen((directive(8, "embedding"),)))
    model = program.function("model")
    makers = {value: op for op in model.ops for value in op.results}
    tables = [op for op in model.ops if isinstance(op.attrs, Take)]
    assert [model.types[op.operands[0]].dtype for op in tables] == ["i8", "f32"]
    made = [op for op in model.ops if isinstance(op.attrs, Dequantize)]
    names = [model.types[op.results[0]].names for op in made]
    assert ("batch", "seq", "embed") in names
    assert all(isinstance(makers[v].attrs, Take) for v in made[0].operands)
    along = run(base(lora=()), QuantizeFrozen((directive(8, "embedding", 7, "vocab"),)))
    (table,) = [op for op in along.function("model").ops if isinstance(op.attrs, Take)]
    assert along.function("model").types[table.operands[0]].dtype == "f64"


def test_the_last_directive_counts_and_updates_and_plain_tensors_are_left() -> None:
    steps = directive(8, "*"), directive(4, "body.*.mlp.gate", 2)
    program = run(base(), QuantizeFrozen(steps))
    kinds = {p.name: p.type.dtype for p in program.parameters}
    assert kinds["body.mlp.gate.codes"] == "u8" and kinds["body.mlp.up.codes"] == "i8"
    assert kinds["body.attn.wq.lora_a"] == kinds["final_norm.scale"] == "f64"
    codes = program.parameter("body.mlp.gate.codes")
    assert codes.layer_name(1) == "body.1.mlp.gate.codes"
    assert program.sizes.shape(codes.type) == (2, 6, 3)


def refused(program: Program, *steps: Quantize) -> Diagnostic:
    with pytest.raises(DiagnosticError) as caught:
        run(program, QuantizeFrozen(steps))
    (found,) = caught.value.diagnostics
    assert found.span == PLACE
    return found


def test_what_trains_is_not_quantised() -> None:
    found = refused(base(tune=("body.*.mlp.gate",)), directive())
    assert found.code == "E0381" and "`body.mlp.gate` trains" in found.message()
    other = Span("m.fllm", 1, 2, 9, 1, 9, 2)
    program = base(tune=("body.*.mlp.gate",))
    declared = tuple(replace(p, span=other) for p in program.parameters)
    found = refused(replace(program, parameters=declared), directive())
    assert [label.span for label in found.secondary()] == [other]


def test_what_trains_in_part_is_not_quantised() -> None:
    program = run(base(), SplitRows((Rows("body.*.mlp.gate", 0, 2, tune=True),)))
    found = refused(program, directive())
    assert found.code == "E0381" and "`body.mlp.gate` trains" in found.message()


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        (directive(8, "body.*.attn.wq", 5), "no dim is a multiple of 5"),
        (directive(8, "body.*.attn.wq", 4, "embed"), "`embed` is no multiple of 4"),
        (directive(8, "body.*.attn.wq", 2, "ffn"), "it has no dim `ffn`"),
        (directive(8, "body.*.attn.wq", 2, "layers"), "it has no dim `layers`"),
        (directive(4, "body.*.attn.wq", 3), "a block is even"),
    ],
)
def test_blocks_that_do_not_fit(wrong: Quantize, why: str) -> None:
    found = refused(base(), wrong)
    assert found.code == "E0382" and why in found.message()
    assert "embed=6, heads=4, head_dim=4" in found.helps()[0]


def test_a_selector_of_no_map() -> None:
    assert refused(base(), directive(8, "final_norm")).code == "E0383"


def test_blocks_on_two_ranks() -> None:
    program = trained(run(base(), QuantizeFrozen((directive(8, "body.*.mlp.gate", 2, "ffn"),))))
    mesh = Context(Mesh((Axis("tensor", 2),)), lambda found: None)
    with pytest.raises(DiagnosticError) as caught:
        Place((Shard(("ffn",), ("tensor",), span=PLACE),)).run(program, mesh)
    (found,) = caught.value.diagnostics
    assert found.code == "E0384" and found.span == PLACE
    assert "does not divide the 3 blocks along `ffn`" in found.message()


MESH = Mesh((Axis("fsdp", 2), Axis("tensor", 2)))


@pytest.mark.parametrize("bits", ["4 bits", "8 bits"])
def test_what_is_gathered_are_codes_and_scales(bits: str) -> None:
    program = sharded(combined([bits, "zero 3", "tensor"]).text, MESH)
    codes = {"4 bits": "u8", "8 bits": "i8"}[bits]
    gathered: set[str] = set()
    for function in program.functions:
        makers = {value: op for op in function.ops for value in op.results}
        for op in function.ops:
            if isinstance(op.attrs, Dequantize) and "embed" not in op.path:
                kind = function.types[op.results[0]]
                assert "fsdp" not in kind.axes or "batch" in kind.names
                gathered |= {
                    function.types[v].dtype
                    for v in op.operands
                    if v in makers and isinstance(makers[v].attrs, AllGather)
                }
    assert gathered == {codes, "f32"}


def test_it_is_said() -> None:
    program = sharded(combined(["4 bits"]).text, Mesh())
    told = {d.subject: d for d in decisions(program, Schedule()) if "changes numbers" in d.reason}
    assert set(told) == owners(program)
    assert told["body.attn.wq"].choice == "stored in 4 bits with a scale for each 4 along embed"
    assert "15.2% of the largest" in told["body.attn.wq"].reason


@pytest.mark.parametrize("budget", [0.0, 1.0])
def test_no_budget_is_spent_on_what_codes_stand_for(budget: float) -> None:
    """With room for everything, weights would be kept first of all: to make them costs most."""
    spec, devices = load_drawn(Drawn(text("tiny_llama", "microbatches: 2"), "data=2,tensor=2"))
    adapter = Adapter("few", ("*",), (), UPDATES[:1], quantize=(directive(4, "*", 4),))
    schedule = replace(spec.schedule, budget_gib=budget)
    spec = replace(spec, schedule=schedule, adapter=adapter)
    within, _ = within_budget(spec, devices, "cpu")
    assert (within is None) == (budget == 0.0)
    passes = standard_pipeline(spec, within)
    program, _ = run_pipeline(spec.program, passes, Context(devices, lambda _: None), lambda: 0.0)
    function = program.function("train")
    (outer,) = [op for op in function.ops if isinstance(op.attrs, Scan)]
    function = program.function(scan_of(outer).function)
    (stack,) = stacks(function)
    scan = scan_of(function.ops[stack.forward])
    body, layer = program.function(scan.function), program.function(scan.function).types
    kept = [layer[value] for value in body.results[scan.carries :]]
    assert kept and all("batch" in kind.names for kind in kept)
    assert any(isinstance(op.attrs, Dequantize) for op in body.ops)


def test_making_values_of_codes_takes_the_time_of_its_bytes() -> None:
    program = run(base(), QuantizeFrozen((directive(4, "body.*.mlp.gate"),)))
    layer, target = program.function("layer"), load_target("h100")
    (op,) = [op for op in layer.ops if isinstance(op.attrs, Dequantize)]
    moved = 6 * 6 * 8 + 6 * 6 // 2 + 6 * 6 // 2 * 4
    seconds = op_seconds(program, layer, op, target)
    assert seconds == pytest.approx(moved / (target.memory_gbps * 1e9))
