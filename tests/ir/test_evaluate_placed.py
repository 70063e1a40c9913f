"""A placed program computes what the same program computes on one device."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.types import Dim, Sizes, Type
from fllmc.ir.verify import verify
from tests.ir.programs import DIMS, MESH, arguments_for, erase, program_of, programs

BATCH, SEQ, EMBED = Dim("batch", ("data",)), Dim("seq"), Dim("embed", ("tensor",))


def placed(build: Callable[[Builder], int], **dims: int) -> Program:
    """A program on the 2x2 mesh that returns what `build` builds as `y`."""
    builder = Builder("main", Sizes({**DIMS, **dims}, MESH))
    program = program_of(
        builder.finish([build(builder)], ["y"]), level="sharded", mesh=MESH, dims={**DIMS, **dims}
    )
    verify(program)
    return program


def same_as_erased(program: Program, seed: int = 0) -> None:
    arguments = arguments_for(program, seed)
    here, there = evaluate(program, "main", arguments), evaluate(erase(program), "main", arguments)
    assert here.keys() == there.keys()
    for name in here:
        np.testing.assert_allclose(here[name], there[name], rtol=1e-9, atol=1e-9, err_msg=name)


@given(programs(placed=True))
@settings(max_examples=150)
def test_random_programs(program: Program) -> None:
    verify(program)
    verify(erase(program))
    same_as_erased(program)


def test_dot_over_a_divided_dim() -> None:
    def build(b: Builder) -> int:
        x = b.input("x", Type("f32", (BATCH, SEQ, EMBED)))
        w = b.input("w", Type("f32", (EMBED, Dim("ffn"))))
        return b.one(ops.AllReduce(("tensor",)), b.one(ops.Dot(("embed",)), x, w))

    program = placed(build)
    given_ = arguments_for(program, 1)
    found = evaluate(program, "main", given_)["y"]
    np.testing.assert_allclose(found, given_["x"] @ given_["w"], rtol=1e-12)


def test_a_vocabulary_divided_over_both_axes() -> None:
    """take, pick, put and spread each resolve to what one device gives."""
    vocab = Dim("vocab", ("data", "tensor"))

    def tokens(b: Builder) -> int:
        return b.input("t", Type("i64", (Dim("batch"), SEQ), index="vocab"))

    def take(b: Builder) -> int:
        table = b.input("x", Type("f32", (vocab, Dim("embed"))))
        return b.one(ops.AllReduce(("data", "tensor")), b.one(ops.Take("vocab"), table, tokens(b)))

    def pick(b: Builder) -> int:
        x = b.input("x", Type("f32", (Dim("batch"), vocab, SEQ)))
        return b.one(ops.AllReduce(("data", "tensor")), b.one(ops.Pick("vocab"), x, tokens(b)))

    def put(b: Builder) -> int:
        x = b.input("x", Type("f32", (SEQ, Dim("embed"), Dim("batch"))))
        return b.one(ops.Put(vocab), tokens(b), x)

    def spread(b: Builder) -> int:
        x = b.input("x", Type("f32", (SEQ, Dim("batch"))))
        return b.one(ops.Spread(vocab), x, tokens(b))

    for build in (take, pick, put, spread):
        same_as_erased(placed(build, vocab=12))


def test_chunks_of_a_divided_dim() -> None:
    """Each rank deals out its own stretch, and it is dealt as one device deals out the whole."""
    sizes = {"seq": 12, "seq.part": 4, "chunks": 3}
    seq = Dim("seq", ("tensor",))

    def chunk(b: Builder) -> int:
        x = b.input("x", Type("f32", (BATCH, seq, Dim("embed"))))
        return b.one(ops.Chunk("seq", "seq.part", "chunks"), x)

    def unchunk(b: Builder) -> int:
        return b.one(ops.Unchunk("seq", "seq.part", "chunks"), b.exp(chunk(b)))

    for build in (chunk, unchunk):
        same_as_erased(placed(build, **sizes))
    program = placed(unchunk, **sizes)
    x = arguments_for(program, 0)["x"]
    np.testing.assert_array_equal(evaluate(program, "main", {"x": x})["y"], np.exp(x))
    dealt = evaluate(placed(chunk, **sizes), "main", {"x": x})["y"]
    np.testing.assert_array_equal(dealt[1], x[:, 1::3])


def test_put_over_divided_positions_is_reduced() -> None:
    def build(b: Builder) -> int:
        index = b.input("t", Type("i64", (BATCH, SEQ), index="vocab"))
        x = b.input("x", Type("f32", (BATCH, SEQ, EMBED)))
        open_sum = b.one(ops.Put(Dim("vocab")), index, x)
        return b.one(ops.ReduceScatter("vocab", ("data",)), open_sum)

    same_as_erased(placed(build, vocab=6))


def test_attend_with_divided_heads_and_batch() -> None:
    def build(b: Builder) -> int:
        q = b.input("q", Type("f32", (BATCH, SEQ, Dim("heads", ("tensor",)), Dim("head_dim"))))
        kv = Type("f32", (BATCH, SEQ, Dim("kv_heads", ("tensor",)), Dim("head_dim")))
        k, v = b.input("k", kv), b.input("v", kv)
        attend = ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.5)
        out, lse = b.emit(attend, q, k, v)
        grad = ops.AttendGrad("seq", "heads", "kv_heads", "head_dim", 0.5)
        d_q, d_k, d_v = b.emit(grad, q, k, v, out, lse, b.one(ops.Sin(), out))
        both = b.one(ops.Mul(), d_k, d_v)
        return b.one(ops.AllGather("heads", ("tensor",)), b.one(ops.Dot(()), d_q, both))

    def narrow(b: Builder) -> int:
        """The product above has too many dims to be placed: sum the key heads first."""
        q = b.input("q", Type("f32", (BATCH, SEQ, Dim("heads", ("tensor",)), Dim("head_dim"))))
        kv = Type("f32", (BATCH, SEQ, Dim("kv_heads", ("tensor",)), Dim("head_dim")))
        k, v = b.input("k", kv), b.input("v", kv)
        out, lse = b.emit(ops.Attend("seq", "heads", "kv_heads", "head_dim", 0.5), q, k, v)
        grad = ops.AttendGrad("seq", "heads", "kv_heads", "head_dim", 0.5)
        d_q, d_k, d_v = b.emit(grad, q, k, v, out, lse, b.one(ops.Sin(), out))
        both = b.sum(b.mul(d_k, d_v), ["kv_heads"])
        shared = b.one(ops.AllReduce(("tensor",)), both)
        return b.one(ops.AllGather("heads", ("tensor",)), b.mul(d_q, shared))

    with pytest.raises(InternalError, match="an axis divides two dims"):
        placed(build, heads=8, kv_heads=4, head_dim=2)
    same_as_erased(placed(narrow, heads=8, kv_heads=4, head_dim=2))


def test_random_numbers_do_not_depend_on_the_mesh() -> None:
    def build(b: Builder) -> int:
        seed = b.constant(2.0**40 + 3)
        samples = b.one(ops.Iota(BATCH))
        layer = b.input("layer", Type("i64", index="layers"))
        return b.one(ops.Random(5, (BATCH, SEQ, EMBED)), seed, samples, layer)

    program = placed(build)
    first, second = (evaluate(program, "main", {"layer": layer})["y"] for layer in (1, 2))
    np.testing.assert_array_equal(first, evaluate(erase(program), "main", {"layer": 1})["y"])
    assert (first != second).all()
    assert ((first >= 0) & (first < 1)).all()
    assert len(np.unique(first)) == first.size


def test_local_slices_and_gathers_undo_each_other() -> None:
    def build(b: Builder) -> int:
        x = b.input("x", Type("f32", (BATCH, Dim("embed"))))
        part = b.one(ops.LocalSlice("batch", ("tensor",)), x)
        whole = b.one(ops.AllGather("batch", ("data", "tensor")), part)
        return b.one(ops.LocalSlice("embed", ("tensor", "data")), whole)

    same_as_erased(placed(build))


def test_a_maximum_is_resolved_by_a_maximum() -> None:
    def build(b: Builder) -> int:
        x = b.input("x", Type("f32", (BATCH, EMBED)))
        return b.one(ops.AllReduce(("data", "tensor")), b.one(ops.ReduceMax(("batch", "embed")), x))

    same_as_erased(placed(build))


def test_results_that_differ_between_replicas_are_refused() -> None:
    """A faulty program, made by lying about the placement of a rank's own positions."""
    builder = Builder("main", Sizes(DIMS, MESH))
    part = builder.one(ops.Iota(Dim("batch", ("data",))))
    builder.types[part] = Type("i64", (Dim("one"),), index="batch")
    function = builder.finish([part], ["y"])
    dims = {**DIMS, "one": 2}
    lie = program_of(function, level="sharded", mesh=MESH, dims=dims)
    with pytest.raises(InternalError, match="replicas"):
        evaluate(lie, "main", {})


def test_a_result_left_partial_is_refused() -> None:
    builder = Builder("main", Sizes(DIMS, MESH))
    x = builder.input("x", Type("f32", (BATCH,)))
    function = builder.finish([builder.sum(x, ["batch"])], ["y"])
    program = program_of(function, level="sharded", mesh=MESH)
    with pytest.raises(InternalError, match="unresolved"):
        evaluate(program, "main", {"x": np.ones(4)})
