"""Lifetimes to offsets, values to places."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given
from hypothesis import strategies as st

from fllmc.codegen.memory import plan_frames
from fllmc.codegen.offsets import Item, aligned, best_gap, live_bytes, offsets
from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.plan import ALIGNMENT, Frame
from fllmc.ir.program import DimSize, Function, Program
from fllmc.ir.types import Sizes, tensor
from fllmc.ir.verify import verify

SIZES = Sizes({"batch": 8, "embed": 8, "key": 8, "layers": 3})
X = tensor("f64", "batch", "embed")
W = tensor("f64", "embed", "key")
BYTES = 8 * 8 * 8

items = st.builds(
    lambda start, length, size: Item(start, start + length, aligned(size)),
    st.integers(0, 30),
    st.integers(0, 12),
    st.integers(0, 5000),
)


def frame(b: Builder, results: list[int], outputs: list[str], *others: Function) -> Frame:
    function = b.finish(results, outputs)
    dims = tuple(DimSize(name, size) for name, size in SIZES.dims.items())
    program = Program("plan", dims, (function, *others), (function.name,))
    verify(program)
    return plan_frames(program)[function.name]


def kinds(found: Frame) -> list[tuple[str, int]]:
    return [(place.kind, place.number) for place in found.places]


def builder(*functions: Function) -> Builder:
    return Builder("main", SIZES, {f.name: f.signature for f in functions})


@given(st.lists(items, max_size=40))
def test_items_alive_together_are_apart(given_items: list[Item]) -> None:
    starts, total = offsets(given_items)
    placed = list(zip(given_items, starts, strict=True))
    for (a, at), (b, bt) in combinations(placed, 2):
        together = a.start <= b.stop and b.start <= a.stop
        assert not together or at + a.bytes <= bt or bt + b.bytes <= at
    assert all(start % ALIGNMENT == 0 for start in starts)
    assert total == max((start + item.bytes for item, start in placed), default=0)
    assert total >= live_bytes(given_items)


@given(st.lists(items, max_size=20))
def test_live_bytes_counts_each_moment(given_items: list[Item]) -> None:
    moments = [sum(i.bytes for i in given_items if i.start <= t <= i.stop) for t in range(50)]
    assert live_bytes(given_items) == max(moments)


def test_the_smallest_hole_that_fits_is_taken() -> None:
    assert best_gap([(128, 192), (256, 320)], 64) == 192
    assert best_gap([(128, 192), (256, 320)], 128) == 0
    assert best_gap([(64, 192), (256, 320)], 128) == 320


def test_a_chain_of_elementwise_ops_needs_one_buffer() -> None:
    b = builder()
    value = b.input("x", X)
    for _ in range(5):
        value = b.exp(value)
    found = frame(b, [b.sum(value, ("embed",))], ["y"])
    assert found.bytes == found.live_bytes == BYTES


def test_an_input_is_not_overwritten_unless_its_entry_replaces_it() -> None:
    b = builder()
    x, w = b.input("x", X, "data"), b.input("w", X, "param")
    found = frame(b, [b.add(b.exp(x), w), b.exp(w)], ["y", "z"])
    assert kinds(found)[:2] == [("argument", 0), ("argument", 1)]
    assert ("argument", 0) not in kinds(found)[2:]
    b = builder()
    w = b.input("w", X, "param")
    assert set(kinds(frame(b, [b.exp(b.neg(w))], ["w"]))) == {("argument", 0)}


def test_a_parameter_read_after_its_update_is_updated_apart() -> None:
    b = builder()
    w = b.input("w", X, "param")
    new = b.exp(w)
    found = frame(b, [new, b.sub(new, w)], ["w", "change"])
    assert kinds(found)[new] == ("result", 0)


def test_an_alias_keeps_its_storage_alive() -> None:
    """y = x renamed is x; what is written over x while y is awaited would be lost."""
    b = builder()
    w = b.input("w", tensor("f64", "embed", "key"), "param")
    x = b.exp(w)
    y = b.rename(x, {"embed": "key", "key": "embed"})
    z = b.neg(x)
    found = frame(b, [z, b.one(ops.Dot(("embed",)), y, y)], ["z", "product"])
    places = kinds(found)
    assert places[x] == places[y] != places[z]


def test_a_product_added_to_its_own_operand_gets_a_buffer_of_its_own() -> None:
    """base and a factor are one storage under two names: the product may not be written over it."""
    b = builder()
    given, square = b.input("x", tensor("f64", "batch", "key")), b.input("square", W)
    x = b.exp(given)
    total = b.one(ops.DotAdd(("embed",)), x, b.rename(x, {"key": "embed"}), square)
    places = kinds(frame(b, [b.sum(total, ("key",))], ["y"]))
    assert places[total] != places[x]


def test_a_product_is_added_in_place() -> None:
    b = builder()
    given, square = b.input("x", tensor("f64", "batch", "key")), b.input("square", W)
    other = b.input("other", X)
    x = b.exp(given)
    total = b.one(ops.DotAdd(("embed",)), x, other, square)
    places = kinds(frame(b, [b.sum(total, ("key",))], ["y"]))
    assert places[total] == places[x]


def test_one_input_is_written_over_by_one_result() -> None:
    """Two results that could each be written over either input."""
    b = builder()
    p, q = b.input("p", X, "param"), b.input("q", X, "param")
    v = b.add(p, q)
    x, y = b.exp(v), b.neg(v)
    found = frame(b, [x, y], ["p", "q"])
    assert kinds(found)[x] != kinds(found)[y]


def test_a_stack_updates_slices_and_carries_in_place() -> None:
    """The accumulator of a stack's gradients: each run adds to its own slice."""
    body = Builder("body", SIZES)
    carry, total = body.input("carry", X), body.input("total", X)
    grown = body.exp(carry)
    inner = body.finish([grown, body.add(total, grown)], ["carry", "total"])
    b = builder(inner)
    given = b.input("x", X), b.input("t", tensor("f64", "layers", *X.names))
    x, totals = (b.exp(value) for value in given)
    last, stacked = b.emit(ops.Scan("body", "layers", 1, 1), x, totals)
    found = frame(b, [b.sum(last, ("embed",)), b.sum(stacked, ("embed",))], ["y", "z"], inner)
    places = kinds(found)
    assert places[last] == places[x]
    assert places[stacked] == places[totals]
