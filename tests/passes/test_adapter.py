"""apply-adapter: what trains, and low-rank updates checked against plain numpy."""

import msgspec
import numpy as np
import pytest

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.ops import Random
from fllmc.ir.program import Program
from fllmc.ir.settings import Lora
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.errors import AdapterSelectsNothing, NoArrow, WrongOption
from fllmc.passes.inline import Inline
from tests.passes.stack_programs import applied, equal, model_program, random_arguments

RANK = 2


def flat() -> Program:
    return applied(Inline(), model_program())


def trainable(program: Program) -> list[str]:
    return [p.name for p in program.parameters if p.trainable]


def test_freeze_then_tune() -> None:
    after = applied(ApplyAdapter(freeze=("*",), tune=("body.*.norm.scale",)), flat())
    assert trainable(after) == ["body.norm.scale"]
    assert after.functions == flat().functions


def test_updates_train_though_the_base_is_frozen() -> None:
    step = ApplyAdapter(("*",), (), (Lora("body.*.mlp.{up, down}", RANK, 4.0),))
    after = applied(step, flat())
    parts = ["lora_a", "lora_b"]
    assert trainable(after) == [f"body.mlp.{m}.{p}" for m in ("up", "down") for p in parts]
    a, b = (after.parameter(f"body.mlp.up.{part}") for part in parts)
    assert a.type.names == ("layers", "embed", "body_mlp_up_rank")
    assert b.type.names == ("layers", "body_mlp_up_rank", "ffn")
    assert a.init.kind == "normal" and a.init.std == pytest.approx(6**-0.5)
    assert b.init.kind == "zeros"
    assert a.layer_name(2) == "body.2.mlp.up.lora_a"
    assert trainable(applied(ApplyAdapter(lora=step.lora), flat()))[:2] == [
        "embedding",
        "body.mlp.up",
    ]


def test_zero_updates_change_nothing() -> None:
    before = flat()
    after = applied(ApplyAdapter(lora=(Lora("*", RANK, 4.0),)), before)
    arguments = random_arguments(before, "model")
    given = random_arguments(after, "model")
    given.update({name: value * 0 for name, value in given.items() if "lora_b" in name})
    given.update(arguments)
    first = evaluate(before, "model", arguments)["out"]
    assert np.array_equal(first, evaluate(after, "model", given)["out"])


def test_updates_are_as_if_the_weights_were_changed() -> None:
    """All maps at once: the stacked ones, the looked-up one and its transposed use."""
    before = flat()
    after = applied(ApplyAdapter(lora=(Lora("*", RANK, 3.0),)), before)
    given = random_arguments(after, "model")
    merged = {n: v for n, v in given.items() if "lora" not in n}
    for name in ("embedding", "body.mlp.up", "body.mlp.down"):
        merged[name] = merged[name] + 1.5 * given[f"{name}.lora_a"] @ given[f"{name}.lora_b"]
    wanted = evaluate(before, "model", merged)["out"]
    np.testing.assert_allclose(evaluate(after, "model", given)["out"], wanted, rtol=1e-11)


def test_a_plain_tensor_in_a_product_gets_no_update() -> None:
    before = flat()
    parameters = tuple(
        msgspec.structs.replace(p, plain=p.name == "body.mlp.up") for p in before.parameters
    )
    before = msgspec.structs.replace(before, parameters=parameters)
    after = applied(ApplyAdapter(lora=(Lora("*", RANK, 3.0),)), before)
    updated = {p.updates for p in after.parameters if p.updates}
    assert updated == {"embedding", "body.mlp.down"}
    with pytest.raises(DiagnosticError) as caught:
        applied(ApplyAdapter(lora=(Lora("body.*.mlp.up", RANK, 3.0),)), before)
    assert [type(found) for found in caught.value.diagnostics] == [NoArrow]


def test_dropout_differs_by_layer_and_sample_and_keeps_the_mean() -> None:
    lora = Lora("body.*.mlp.up", RANK, 2.0, dropout=0.5)
    after = applied(ApplyAdapter(lora=(lora,)), flat())
    assert {"samples", "seed"} <= {g.name for g in after.function("model").inputs}
    (random,) = [op for f in after.functions for op in f.ops if isinstance(op.attrs, Random)]
    assert len(random.operands) == 3
    given = random_arguments(after, "model")
    first = evaluate(after, "model", {**given, "seed": 1.0, "training": 1.0})["out"]
    assert np.array_equal(
        first, evaluate(after, "model", {**given, "seed": 1.0, "training": 1.0})["out"]
    )
    assert not np.array_equal(
        first, evaluate(after, "model", {**given, "seed": 2.0, "training": 1.0})["out"]
    )
    # Each sample has numbers of its own: swapping the batch swaps the results.
    swapped = {**given, "seed": 1.0, "training": 1.0}
    for name in ("tokens", "samples"):
        swapped[name] = swapped[name][::-1]
    swapped_out = evaluate(after, "model", swapped)["out"]
    np.testing.assert_allclose(swapped_out[::-1], first, rtol=1e-12)


def test_two_stacks_with_one_body_get_updates_apart() -> None:
    before = flat()
    top = before.function("model")
    scan = next(op for op in top.ops if op.kind == "scan")
    b = Builder("model", before.sizes, before.signatures)
    m = {i: b.input(g.name, top.types[i], g.role) for i, g in enumerate(top.inputs)}
    second = [
        b.input(f"tail.{name}", top.types[v], "param")
        for name, v in zip(("mlp.up", "mlp.down", "norm.scale"), scan.operands[1:], strict=True)
    ]
    for op in top.ops:
        b.path = op.path
        made = b.emit(op.attrs, *(m[v] for v in op.operands))
        if op is scan:
            b.path = "tail"
            made = b.emit(scan.attrs, made[0], *second)
        m.update(zip(op.results, made, strict=True))
    entry = b.finish([m[top.results[0]]], ["out"])
    tail = tuple(
        msgspec.structs.replace(p, name=p.name.replace("body", "tail"))
        for p in before.parameters
        if p.stack
    )
    double = msgspec.structs.replace(
        before.with_functions(entry), parameters=(*before.parameters, *tail)
    )
    after = applied(ApplyAdapter(lora=(Lora("tail.*.mlp.up", RANK, 2.0),)), double)
    given = random_arguments(after, "model")
    merged = {n: v for n, v in given.items() if "lora" not in n}
    a, bb = given["tail.mlp.up.lora_a"], given["tail.mlp.up.lora_b"]
    merged["tail.mlp.up"] = merged["tail.mlp.up"] + a @ bb
    wanted = evaluate(double, "model", merged)["out"]
    np.testing.assert_allclose(evaluate(after, "model", given)["out"], wanted, rtol=1e-11)


@pytest.mark.parametrize(
    ("step", "kind", "words"),
    [
        (ApplyAdapter(freeze=("body.*.mlp.upp",)), AdapterSelectsNothing, "`body.*.mlp.up`"),
        (ApplyAdapter(tune=("body.1.mlp",)), AdapterSelectsNothing, "all layers"),
        (ApplyAdapter(lora=(Lora("zzz", 2, 2.0),)), AdapterSelectsNothing, "parameters are"),
        (ApplyAdapter(lora=(Lora("body.*.norm", 2, 2.0),)), NoArrow, ""),
        (ApplyAdapter(lora=(Lora("body.*.mlp.up", 0, 2.0),)), WrongOption, ""),
        (ApplyAdapter(lora=(Lora("body.*.mlp.up", 2, 2.0, 1.0),)), WrongOption, ""),
    ],
)
def test_mistakes(step: ApplyAdapter, kind: type[Diagnostic], words: str) -> None:
    with pytest.raises(DiagnosticError) as caught:
        applied(step, flat())
    (found,) = caught.value.diagnostics
    assert type(found) is kind
    assert words in " ".join(found.helps())
    assert found.message() and found.primary()


def test_without_options_nothing_changes() -> None:
    assert applied(ApplyAdapter(), flat()) == flat()
    equal(flat(), applied(ApplyAdapter(freeze=("*",)), flat()), "model")
