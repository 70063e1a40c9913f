"""Rows that train beside frozen ones: the same numbers as masked gradients, and less work."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.flops import op_flops
from fllmc.ir.ops import Put, Scan
from fllmc.ir.program import Program
from fllmc.ir.settings import Lora, Rows, Shard, Zero
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Axis, Mesh
from fllmc.passes.accumulate import Accumulate
from fllmc.passes.apply_adapter import ApplyAdapter
from fllmc.passes.apply_loss import ApplyLoss
from fllmc.passes.base import Context
from fllmc.passes.differentiate import Differentiate
from fllmc.passes.drop_unused import DropUnused
from fllmc.passes.early_rows import EarlyRows
from fllmc.passes.optimizer_step import OptimizerStep
from fllmc.passes.place.place import Place
from fllmc.passes.recompute import Recompute
from fllmc.passes.share_equal import ShareEqual
from fllmc.passes.split_rows import SplitRows, complement
from fllmc.passes.store_frozen import StoreFrozen
from tests.passes.training_programs import arguments, llama, run

FROZEN = (
    Rows("embedding", 0, 3),
    Rows("mixing", 2, 4),
    Rows("body.*.attn.wq", 1, 6),
    Rows("body.*.attn.wo", 0, 1),
    Rows("body.*.mlp.down", 2, 3),
    Rows("body.*.attn_norm.scale", 0, 2),
    Rows("body.*.attn_norm.scale", 4, 5),
)
KEPT = {  # by parameter: the frozen rows, and the dim of the tensor along which rows count
    "embedding": ([0, 1, 2], 0),
    "mixing": ([2, 3], 0),
    "body.attn.wq": ([1, 2, 3, 4, 5], 1),
    "body.attn.wo": ([0], 1),
    "body.mlp.down": ([2], 1),
    "body.attn_norm.scale": ([0, 1, 4], 1),
}


def split(rows: tuple[Rows, ...] = FROZEN, early: bool = True, **dtypes: str) -> Program:
    """The model on parts, on its way to be differentiated."""
    program = run(llama(**dtypes), SplitRows(rows, dtypes.get("compute", "f64")))
    program = run(program, ShareEqual(), ApplyLoss())
    return run(program, EarlyRows()) if early else program


def gradient(program: Program, early: bool = True) -> Program:
    """The program with its gradient; with `early` of the wanted rows alone."""
    program = run(program, Differentiate())
    return run(program, *((EarlyRows(),) if early else ()), ShareEqual(), DropUnused())


def in_parts(program: Program, whole: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for a program on parts that stand for these of the whole."""
    found = dict(whole)
    for part in program.parameters:
        if part.rows:
            axis = 1 if part.stack else 0
            name = part.part_of or part.name
            rows = [row for first, stop in part.stretches for row in range(first, stop)]
            if part.part_of:
                found[part.name] = np.take(whole[name], rows, axis)
            else:
                others = sorted(set(range(whole[name].shape[axis])) - set(rows))
                found[name] = whole[name].copy()
                np.moveaxis(found[name], axis, 0)[others] = 0.0
    return found


def test_gradients_are_the_rows_of_the_whole_gradients() -> None:
    plain = gradient(run(llama(), ShareEqual(), ApplyLoss()), early=False)
    given = arguments(plain, "gradient")
    wanted = evaluate(plain, "gradient", given)
    for early in (False, True):
        program = gradient(split(early=early), early)
        found = evaluate(program, "gradient", in_parts(program, given))
        np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-12)
        parts = [p for p in program.parameters if p.part_of]
        assert {p.part_of for p in parts} == set(KEPT)
        for part in parts:
            rows = range(*part.rows)
            expected = np.take(wanted[f"grad.{part.part_of}"], rows, 1 if part.stack else 0)
            mine = found[f"grad.{part.name}"]
            np.testing.assert_allclose(mine, expected, rtol=1e-10, atol=1e-14, err_msg=part.name)
        for name in KEPT:
            assert f"grad.{name}" not in found


def test_all_rows_are_in_one_part() -> None:
    program = split()
    for name, (frozen, _) in KEPT.items():
        base = program.parameter(name)
        count = program.sizes.size(base.row_dim)
        assert not base.trainable
        assert [r for a, b in base.stretches for r in range(a, b)] == frozen
        trained = [p for p in program.parameters if p.part_of == name]
        rows = [row for p in trained for row in range(*p.rows)]
        assert sorted(rows + frozen) == list(range(count))
        assert all(program.sizes.size(p.row_dim) == p.rows[1] - p.rows[0] for p in trained)


def weight_flops(program: Program) -> int:
    """Work of all products but attention in a gradient, each layer's once."""
    found = 0
    for function in program.functions:
        if function.name == "gradient" or function.name.endswith(".backward"):
            found += sum(op_flops(function, op, program.sizes) for op in function.ops)
    return found


def test_only_wanted_rows_of_weight_gradients_are_computed() -> None:
    rows = (Rows("body.*.mlp.down", 0, 4), Rows("body.*.attn.wq", 2, 6))
    whole = gradient(run(llama(), ShareEqual(), ApplyLoss()))
    part = gradient(split(rows))
    sizes = whole.sizes
    tokens = sizes.size("batch") * sizes.size("seq")
    columns = {"down": sizes.size("embed"), "wq": sizes.size("heads") * sizes.size("head_dim")}
    saved = 2 * tokens * (4 * columns["down"] + 4 * columns["wq"])
    assert weight_flops(whole) - weight_flops(part) == saved
    late = gradient(split(rows, early=False), early=False)
    assert weight_flops(late) == weight_flops(whole)


def test_a_lookup_reads_parts_and_makes_no_whole_table() -> None:
    program = split((Rows("embedding", 0, 3),))
    # The tied head needs the whole, put together once.
    puts = [op for op in program.function("forward").ops if isinstance(op.attrs, Put)]
    assert len(puts) == 1
    takes = [op.kind for op in program.function("forward").ops if op.kind in ("take", "reindex")]
    assert sorted(takes) == ["reindex", "take", "take"]


def test_nothing_is_kept_for_the_backward_pass_that_follows_from_parameters() -> None:
    rows = (Rows("body.*.attn.wq", 1, 3), Rows("body.*.mlp.down", 2, 3))
    steps = Accumulate(2), OptimizerStep(), Recompute(), ShareEqual(), DropUnused()
    given = split(rows, params="f32", compute="bf16")
    before = run(run(llama("f32", "bf16"), ShareEqual(), ApplyLoss()), Differentiate(), *steps)
    after = run(given, Differentiate(), EarlyRows(), *steps)

    def kept(program: Program) -> list[str]:
        body = program.function("layer.forward")
        return sorted(str(body.types[value]) for value in body.results)

    assert kept(after) == kept(before)


def test_the_step_leaves_frozen_rows_and_has_no_state_of_them() -> None:
    program = run(
        gradient(split()), Accumulate(2), OptimizerStep(clip=1.0), ShareEqual(), DropUnused()
    )
    step = program.function("train")
    names = {given.name.partition("#")[0] for given in step.inputs if given.role == "state"}
    assert names.isdisjoint(KEPT) and set(KEPT).isdisjoint(step.outputs)
    for part in program.parameters:
        if part.part_of:
            assert {part.name, f"{part.name}#m", f"{part.name}#v"} <= set(step.outputs)
            assert step.types[step.input_number(f"{part.name}#m")].names == part.type.names


def test_frozen_rows_are_stored_in_the_compute_dtype_and_trained_ones_as_parameters_are() -> None:
    program = run(llama("f32", "bf16"), SplitRows(FROZEN, "bf16"), StoreFrozen("bf16"))
    for parameter in program.parameters:
        assert parameter.type.dtype == ("f32" if parameter.trainable else "bf16"), parameter.name
    sizes = program.sizes
    held = {p.name: sizes.local_bytes(p.type) for p in program.parameters}
    assert held["body.attn.wq"] == 2 * 2 * 6 * 16  # the rows that train are zeros here
    assert held["body.attn.wq.rows"] == 4 * 2 * 1 * 16


def test_the_text_parses_back() -> None:
    program = gradient(split())
    assert parse_program(print_program(program)) == program


MESH = Mesh((Axis("data", 2), Axis("tensor", 2)))
SHARDS = (
    Shard(("batch",), ("data",)),
    Shard(("heads", "kv_heads"), ("tensor",)),
    Shard(("vocab",), ("tensor",)),
)


def placed(rows: tuple[Rows, ...], zero: int, vocab: int = 8) -> tuple[Program, list[str], Program]:
    """The step on one device, the codes of warnings, and the step on four."""
    program = llama().with_dim("vocab", vocab)
    program = run(program, SplitRows(rows, "f64"), ShareEqual(), ApplyLoss(), EarlyRows())
    program = run(gradient(program), Accumulate(1), OptimizerStep(), ShareEqual(), DropUnused())
    said: list[str] = []
    stage = (Zero(zero, ("data",)),) if zero else ()
    step = Place(shards=SHARDS, zero=stage)
    return program, said, step.run(program, Context(MESH, lambda d: said.append(d.code)))


@pytest.mark.parametrize("zero", [0, 1, 3])
@pytest.mark.parametrize("first", [3, 4, 5])
def test_rows_of_a_divided_vocabulary(zero: int, first: int) -> None:
    """Where they don't divide evenly, every rank has all that train, and a warning says so."""
    program, said, sharded = placed((Rows("embedding", 0, first),), zero)
    part = sharded.parameter("embedding.rows")
    even = (8 - first) % 2 == 0
    assert part.type.axes_of("embedding_rows")[:1] == (("tensor",) if even else ())
    assert said == ([] if even else ["W0319"])
    given = arguments(program, "train") | {"step": 3.0}
    wanted, found = evaluate(program, "train", given), evaluate(sharded, "train", given)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-10, atol=1e-13, err_msg=name)


def test_frozen_rows_of_a_divided_vocabulary_never_move() -> None:
    _, _, sharded = placed((Rows("embedding", 0, 4),), 0)
    assert str(sharded.parameter("embedding").type) == "f64[vocab@tensor, embed]"
    step = sharded.function("train")
    base = step.input_number("embedding")
    for op in step.ops:
        if base in op.operands:
            assert op.kind not in ("all_gather", "all_reduce", "all_to_all")


def said(rows: tuple[Rows, ...], freeze: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """The codes and messages that rows give rise to."""
    program = run(llama(), ApplyAdapter(freeze=freeze))
    with pytest.raises(DiagnosticError) as caught:
        run(program, SplitRows(rows))
    return [(found.code, found.message()) for found in caught.value.diagnostics]


def test_wrong_rows_are_told_together() -> None:
    assert said((Rows("embedding", 3, 8), Rows("nothing", 0, 1), Rows("mixing", 0, 7))) == [
        ("E0366", "`embedding` has no rows 3 to 8: it has 7"),
        ("E0360", "`freeze nothing` matches no parameter"),
        ("E0366", "`mixing` has no rows 0 to 7: it has 6"),
    ]


def test_rows_are_selected_once() -> None:
    twice = (Rows("body.*.attn.wq", 0, 3), Rows("body.*.attn", 2, 4))
    assert said(twice) == [("E0367", "rows 2 to 3 of `body.*.attn.wq` are selected twice")]


def test_rows_are_an_exception_to_what_holds_of_the_whole() -> None:
    assert said((Rows("embedding", 0, 3),), ("embedding",)) == [
        ("E0368", "`freeze` of some rows changes nothing: all of `embedding` is frozen")
    ]
    assert said((Rows("mixing", 0, 3, tune=True),), ("embedding",)) == [
        ("E0368", "`tune` of some rows changes nothing: all of `mixing` trains")
    ]


def test_tuned_rows_are_frozen_ones_turned_round() -> None:
    frozen = run(llama(), SplitRows((Rows("embedding", 0, 3),)))
    steps = ApplyAdapter(freeze=("embedding",)), SplitRows((Rows("embedding", 3, 7, tune=True),))
    assert run(llama(), *steps) == frozen


def test_low_rank_updates_of_what_is_selected_train_whole() -> None:
    steps = (
        ApplyAdapter(freeze=("*",), lora=(Lora("embedding", 2, 4.0),)),
        SplitRows((Rows("embedding", 3, 7, tune=True),)),
    )
    program = run(llama(), *steps)
    assert {p.name for p in program.parameters if p.part_of} == {"embedding.rows"}
    assert program.parameter("embedding.lora_a").trainable


@pytest.mark.parametrize("tune", [False, True])
def test_all_rows_are_the_whole(tune: bool) -> None:
    rows = (Rows("embedding", 0, 3, tune=tune), Rows("embedding", 3, 7, tune=tune))
    frozen = ("embedding",) if tune else ()
    program = run(llama(), ApplyAdapter(freeze=frozen), SplitRows(rows))
    base = llama()
    changed = [replace(p, trainable=p.name != "embedding" or tune) for p in base.parameters]
    assert program.parameters == tuple(changed)


def test_complements_partition() -> None:
    for stretches in ((), ((0, 2),), ((1, 3), (5, 7)), ((0, 7),), ((2, 4), (4, 6))):
        rest = complement(stretches, 7)
        rows = sorted(r for a, b in (*stretches, *rest) for r in range(a, b))
        assert rows == list(range(7))


def test_a_stack_keeps_one_body() -> None:
    program = gradient(split())
    scans = [op for op in program.function("gradient").ops if isinstance(op.attrs, Scan)]
    assert len(scans) == 2
