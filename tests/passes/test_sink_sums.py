"""Sums of products become products that add, where nothing else needs the product."""

from __future__ import annotations

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.program import Program
from fllmc.ir.types import indices, tensor
from fllmc.passes.layout import Layout
from fllmc.passes.sink_sums import SinkSums
from tests.codegen.running import hand_made
from tests.passes.plan_programs import builder, kept, kinds

X = tensor("f64", "batch", "embed")
W = tensor("f64", "embed", "ffn")
Y = tensor("f64", "batch", "ffn")


def sunk(b: Builder, *results: int) -> list[str]:
    return kinds(after(b, *results))


def after(b: Builder, *results: int) -> Program:
    return kept(hand_made(b, list(results)), Layout(), SinkSums(), bits=False)


def begun() -> tuple[Builder, int, int, int]:
    b = builder()
    return b, b.input("x", X), b.input("w", W), b.input("base", Y)


def product(b: Builder, x: int, w: int) -> int:
    return b.one(ops.Dot(("embed",)), x, w)


def test_a_product_is_added_to_what_is_there() -> None:
    b, x, w, base = begun()
    assert sunk(b, b.add(base, product(b, x, w))) == ["dot_add"]


def test_on_either_side() -> None:
    b, x, w, base = begun()
    assert sunk(b, b.add(product(b, x, w), base)) == ["dot_add"]


def test_of_two_products_one_begins() -> None:
    b, x, w, _ = begun()
    assert sunk(b, b.add(product(b, x, w), product(b, b.neg(x), w))) == ["dot", "neg", "dot_add"]


def test_a_product_with_another_use_stays() -> None:
    b, x, w, base = begun()
    made = product(b, x, w)
    assert sunk(b, b.add(base, made), b.exp(made)) == ["dot", "add", "exp"]


def test_a_product_that_is_a_result_stays() -> None:
    b, x, w, base = begun()
    made = product(b, x, w)
    assert sunk(b, b.add(base, made), made) == ["dot", "add"]


def test_a_product_added_to_itself_stays() -> None:
    b, x, w, _ = begun()
    made = product(b, x, w)
    assert sunk(b, b.add(made, made)) == ["dot", "add"]


def test_the_base_may_be_used_later() -> None:
    b, x, w, _ = begun()
    base = b.exp(b.input("other", Y))
    total = b.add(base, product(b, x, w))
    assert sunk(b, total, b.mul(base, total)) == ["exp", "dot_add", "mul"]


def test_the_base_may_be_an_operand() -> None:
    """x + x w: the product reads what it would be written over."""
    b = builder()
    x = b.exp(b.input("x", tensor("f64", "batch", "seq")))
    square = b.input("square", tensor("f64", "key", "seq"))
    made = b.one(ops.Dot(("key",)), b.rename(x, {"seq": "key"}), square)
    assert sunk(b, b.add(x, made)) == ["exp", "rename", "dot_add"]


def test_a_sum_of_many_becomes_a_chain() -> None:
    b, x, w, base = begun()
    products = [product(b, b.one(kind, x), w) for kind in (ops.Neg(), ops.Sin(), ops.Cos())]
    total = b.one(ops.AddN(), products[0], base, *products[1:])
    assert sunk(b, total) == ["neg", "sin", "cos", "dot_add", "dot_add", "dot_add"]


def test_a_broadcast_operand_is_no_base() -> None:
    """What lacks a dim can't be written over; two products and a row still share a pass."""
    b, x, w, _ = begun()
    row = b.input("row", tensor("f64", "ffn"))
    first, second = product(b, x, w), product(b, b.neg(x), w)
    assert sunk(b, b.one(ops.AddN(), row, first, second)) == ["dot", "neg", "add", "dot_add"]
    b, x, w, _ = begun()
    row = b.input("row", tensor("f64", "ffn"))
    assert sunk(b, b.add(row, product(b, x, w))) == ["dot", "add"]


def test_a_product_that_lacks_a_dim_stays() -> None:
    b, x, w, _ = begun()
    wide = b.input("wide", tensor("f64", "seq", "batch", "ffn"))
    assert sunk(b, b.add(wide, product(b, x, w))) == ["dot", "add"]


def test_the_other_order_of_dims_stays() -> None:
    b, x, w, _ = begun()
    turned = b.input("turned", tensor("f64", "ffn", "batch"))
    assert "add" in sunk(b, b.add(turned, product(b, x, w)))


def test_scatters_add_too() -> None:
    b = builder()
    table = b.input("table", tensor("f64", "vocab", "embed"))
    rows = b.input("rows", tensor("f64", "batch", "seq", "embed"))
    index = b.input("index", indices("vocab", "batch", "seq"), "data")
    (vocab,) = tensor("f64", "vocab").dims
    made = b.one(ops.Put(vocab), index, rows)
    hidden, head = b.input("hidden", tensor("f64", "batch", "vocab")), b.input("head", X)
    tied = b.one(ops.Dot(("batch",)), hidden, head)
    assert sunk(b, b.add(table, made), b.add(tied, table)) == ["put_add", "dot_add"]


def test_a_sunk_product_still_finds_its_operands() -> None:
    """The product moves to where its sum stands, behind what its operands are."""
    b, x, w, _ = begun()
    made = product(b, x, w)
    late = b.exp(b.input("late", Y))
    assert sunk(b, b.add(late, made)) == ["exp", "dot_add"]
