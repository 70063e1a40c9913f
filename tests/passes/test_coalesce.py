"""Collectives of a block are one call: as many bytes, the same numbers, each value in time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import DimSize, Init, Parameter, Program
from fllmc.ir.types import Axis, Dim, Mesh, Sizes, Type
from fllmc.ir.verify import verify
from fllmc.passes.base import Context
from fllmc.passes.buckets import slots_of
from fllmc.passes.coalesce import Coalesce
from tests.ir.programs import arguments_for
from tests.passes.test_place import agree
from tests.passes.test_zero import sharded

CX = Context(Mesh(), lambda _: None)
MESH = Mesh((Axis("fsdp", 2),))
SIZES = Sizes({"embed": 4, "ffn": 6}, MESH)


def coalesced(program: Program, bucket_mib: int = 32) -> Program:
    """The program with joined collectives, verified."""
    found = Coalesce(bucket_mib).run(program, CX)
    verify(found)
    return found


def calls(program: Program, function: str) -> Counter[tuple[str, str]]:
    """The calls of a function over `fsdp` that move tensors, by kind and dtype."""
    found: Counter[tuple[str, str]] = Counter()
    body = program.function(function)
    for op in body.ops:
        if isinstance(op.attrs, ops.COLLECTIVES) and "fsdp" in op.attrs.axes:
            kinds = [body.types[value] for value in op.operands]
            if any(kind.dims for kind in kinds):
                name = getattr(op.attrs, "collective", op.kind)
                found[name, kinds[0].dtype] += 1
    return found


@pytest.mark.parametrize("more", [(), ("accumulate",), ("accumulate", "data"), ("tensor",)])
def test_a_layer_has_one_gather_each_way_and_one_scatter(more: tuple[str, ...]) -> None:
    program = coalesced(sharded("zero 3", *more))
    assert calls(program, "layer.forward") == {("all_gather", "bf16"): 1}
    assert calls(program, "layer.backward") == {
        ("all_gather", "bf16"): 1,
        ("reduce_scatter", "f32"): 1,
    }


def test_gradients_of_a_bucket_are_summed_by_one_call_of_any_size() -> None:
    program = sharded("data", "accumulate")
    slots = slots_of(program.function("train"), program)
    buckets = {(slot.bucket, slot.label) for slot in slots.values() if slot.label == "grad"}
    assert len(buckets) == 3
    train = coalesced(program, bucket_mib=0).function("train")
    joined = [op for op in train.ops if getattr(op.attrs, "collective", "") == "all_reduce"]
    assert len(joined) == len(buckets)
    # In the order of the regions, so that they are summed where they lie.
    found = slots_of(train, coalesced(program, bucket_mib=0))
    for op in joined:
        assert [found[value].region for value in op.results] == list(range(len(op.results)))


def test_small_buckets_leave_what_is_outside_of_stacks_apart() -> None:
    before = sharded("zero 1", "accumulate")
    apart, joined = coalesced(before, bucket_mib=0), coalesced(before)
    assert calls(apart, "train") == calls(before, "train")
    assert calls(joined, "train") == {("all_gather", "bf16"): 1, ("reduce_scatter", "f32"): 1}


@pytest.mark.parametrize(
    "names",
    [
        ("zero 1",),
        ("zero 2", "accumulate", "data"),
        ("zero 3", "accumulate"),
        ("zero 3", "sequence"),
    ],
    ids=" + ".join,
)
def test_every_entry_means_the_same(names: Sequence[str]) -> None:
    before = sharded(*names)
    after = coalesced(before)
    for entry in before.entries:
        given = arguments_for(before, 0, entry)
        given = {
            k: abs(v) if k.endswith(("#v", "weights", "step")) else v for k, v in given.items()
        }
        agree(evaluate(before, entry, given), evaluate(after, entry, given))


def written(chained: bool) -> Program:
    """Two gathers and two sums; where chained, each needs the one before."""
    stored = Type("f32", (Dim("embed", ("fsdp",)), Dim("ffn")))
    b = Builder("run", SIZES)
    first, second = b.input("first", stored, "param"), b.input("second", stored, "param")
    whole = b.one(ops.AllGather("embed", ("fsdp",)), first)
    part = second
    if chained:
        part = b.mul(second, b.one(ops.LocalSlice("embed", ("fsdp",)), b.mul(whole, whole)))
    other = b.one(ops.AllGather("embed", ("fsdp",)), part)
    sums = [b.one(ops.ReduceSum(("embed",)), b.mul(v, v)) for v in (first, second)]
    closed = [b.one(ops.AllReduce(("fsdp",)), value) for value in sums]
    function = b.finish([whole, other, *closed], ["a", "b", "c", "d"])
    parameters = tuple(Parameter(name, stored, Init("ones")) for name in ("first", "second"))
    dims = tuple(DimSize(name, size) for name, size in SIZES.dims.items())
    return Program("sharded", dims, (function,), ("run",), parameters, MESH)


@pytest.mark.parametrize("chained", [False, True])
def test_what_needs_another_result_is_not_joined_with_it(chained: bool) -> None:
    before = written(chained)
    verify(before)
    after = coalesced(before)
    kinds = Counter(getattr(op.attrs, "collective", op.kind) for op in after.functions[0].ops)
    assert kinds["all_gather"] == (2 if chained else 1)
    assert kinds["all_reduce"] == 1
    given = arguments_for(before, 0, "run")
    agree(evaluate(before, "run", given), evaluate(after, "run", given))


def test_gathers_come_before_the_first_use_and_sums_behind_the_last_term() -> None:
    body = coalesced(sharded("zero 3", "accumulate")).function("layer.backward")
    at = {getattr(op.attrs, "collective", op.kind): n for n, op in enumerate(body.ops)}
    dots = [n for n, op in enumerate(body.ops) if op.kind == "dot"]
    assert at["all_gather"] < min(dots)
    assert at["reduce_scatter"] > max(dots)
