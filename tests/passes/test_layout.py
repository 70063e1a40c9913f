"""Every op gets operands that it reads in place, and no transpose more than that takes."""

from __future__ import annotations

import pytest

from fllmc.ir import ops
from fllmc.ir.types import indices, tensor
from fllmc.passes.layout import Layout, runs
from tests.codegen.running import hand_made
from tests.passes.plan_programs import builder, kept, kinds, orders

Dims = tuple[str, ...]


def product(a: Dims, b: Dims, *contract: str) -> list[Dims]:
    """The transposes that a dot of operands of these dims needs."""
    start = builder()
    x, y = start.input("x", tensor("f64", *a)), start.input("y", tensor("f64", *b))
    return orders(
        kept(hand_made(start, [start.one(ops.Dot(contract), x, y)]), Layout(), bits=False)
    )


@pytest.mark.parametrize(
    ("a", "b", "contract"),
    [
        (("batch", "seq", "embed"), ("embed", "heads", "head_dim"), ("embed",)),
        (("batch", "seq", "heads", "head_dim"), ("heads", "head_dim", "embed"), None),
        (("batch", "seq", "embed"), ("batch", "seq", "ffn"), ("batch", "seq")),
        (("embed", "batch", "seq"), ("ffn", "embed"), ("embed",)),
        (("batch", "seq", "embed"), ("batch", "key", "embed"), ("embed",)),
        (("embed",), ("embed",), ("embed",)),
        (("embed",), ("ffn",), ()),
        (("batch", "embed", "seq"), ("batch", "seq", "key"), ("seq",)),
    ],
)
def test_runs_are_read_in_place(a: Dims, b: Dims, contract: Dims | None) -> None:
    assert product(a, b, *(contract if contract is not None else ("heads", "head_dim"))) == []


@pytest.mark.parametrize(
    ("a", "b", "contract", "wanted"),
    [
        # Batch dims last in memory.
        (("embed", "batch"), ("embed", "ffn", "batch"), ("embed",), 2),
        # A contracted dim in two halves.
        (("heads", "seq", "head_dim"), ("heads", "head_dim", "embed"), ("heads", "head_dim"), 1),
        # Contracted dims in another order on the other side.
        (("seq", "heads", "head_dim"), ("head_dim", "heads", "embed"), ("heads", "head_dim"), 1),
        # Batch dims in another order.
        (("batch", "group", "embed"), ("group", "batch", "embed", "ffn"), ("embed",), 1),
        # Elementwise: every dim is a batch dim, and none is left over for rows or columns.
        (("batch", "seq"), ("batch", "seq"), (), 0),
        (("batch", "seq"), ("seq",), (), 0),
    ],
)
def test_what_is_apart_is_brought_together(a: Dims, b: Dims, contract: Dims, wanted: int) -> None:
    assert len(product(a, b, *contract)) >= wanted


def test_attention_takes_both_head_orders() -> None:
    for inner in (("seq", "heads", "head_dim"), ("heads", "seq", "head_dim")):
        assert attention(("batch", *inner), tuple(n.replace("heads", "kv_heads") for n in inner))


def attention(q: Dims, k: Dims) -> bool:
    """Whether attention between tensors of these dims and its gradient need no transpose."""
    b = builder()
    batch = tuple(name for name in q if name not in ("seq", "heads", "head_dim"))
    k = k if set(batch) <= set(k) else (*batch, *k)
    given = [b.input(n, tensor("f64", *dims)) for n, dims in (("q", q), ("k", k), ("v", k))]
    grad = b.input("grad", tensor("f64", *q))
    shape = ("seq", "heads", "kv_heads", "head_dim", 0.5)
    out, lse = b.emit(ops.Attend(*shape), *given)
    found = b.emit(ops.AttendGrad(*shape), *given, out, lse, grad)
    after = kept(hand_made(b, [out, lse, *found]), Layout(), bits=False)
    return "transpose" not in kinds(after)


def test_attention_with_dims_in_odd_orders() -> None:
    assert not attention(
        ("head_dim", "batch", "seq", "heads"), ("kv_heads", "seq", "batch", "head_dim")
    )
    assert attention(("seq", "heads", "head_dim"), ("kv_heads", "seq", "head_dim"))


def test_attention_with_batch_dims_in_two_orders() -> None:
    q = ("batch", "group", "seq", "heads", "head_dim")
    assert attention(q, ("batch", "group", "seq", "kv_heads", "head_dim"))
    assert not attention(q, ("group", "batch", "seq", "kv_heads", "head_dim"))


@pytest.mark.parametrize(
    "table",
    [
        ("vocab", "heads", "head_dim"),
        ("heads", "head_dim", "vocab"),
        ("heads", "vocab", "head_dim"),
    ],
)
def test_lookups(table: Dims) -> None:
    b = builder()
    rows = b.input("table", tensor("f64", *table))
    index = b.input("index", indices("vocab", "batch", "seq"), "data")
    after = kept(hand_made(b, [b.one(ops.Take("vocab"), rows, index)]), Layout())
    assert ("transpose" in kinds(after)) == (table[1] == "vocab")


@pytest.mark.parametrize("value", [("batch", "seq", "embed"), ("seq", "embed", "batch")])
def test_scatters_want_the_index_first(value: Dims) -> None:
    b = builder()
    rows = b.input("rows", tensor("f64", *value))
    index = b.input("index", indices("vocab", "batch", "seq"), "data")
    (vocab,) = tensor("f64", "vocab").dims
    after = kept(hand_made(b, [b.one(ops.Put(vocab), index, rows)]), Layout(), bits=False)
    assert orders(after) == ([] if value[0] == "batch" else [("batch", "seq", "embed")])


def test_runs() -> None:
    assert runs("abcd", [("a", "b"), (), ("c", "d")])
    assert runs("cdab", [("a", "b"), ("c", "d")])
    assert not runs("acbd", [("a", "b"), ("c", "d")])
    assert not runs("abc", [("a", "b")])
