"""Blockwise ops: what they mean, what they refuse, and that all interpreters agree."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import norm

from fllmc.ir import ops
from fllmc.ir.build import Builder
from fllmc.ir.codebooks import MIDPOINTS, NF4
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.evaluate import evaluate
from fllmc.ir.program import Program
from fllmc.ir.text import parse_program, print_program
from fllmc.ir.types import Dim, Mesh, Sizes, Type, tensor
from fllmc.ir.verify import verify
from fllmc.runtime.executor import Executor
from tests.codegen.running import hand_made, planned, results
from tests.ir.blockwise import coded, packed
from tests.ir.programs import MESH, erase, program_of

SIZES = {"rows": 4, "embed": 16, "embed.codes": 8, "embed.blocks": 4, "ffn": 6}
CODES = {4: "embed.codes", 8: "embed"}
ORDERS = (("rows", "embed"), ("embed", "rows"), ("rows", "embed", "ffn"))
BITS = (4, 8)


def there_and_back(bits: int, names: tuple[str, ...]) -> Program:
    """x -> codes, scales, and what they stand for."""
    b = Builder("main", Sizes(SIZES))
    x = b.input("x", tensor("f64", *names))
    attrs = "embed", CODES[bits], "embed.blocks", bits
    codes, scales = b.emit(ops.Quantize(*attrs), x)
    y = b.one(ops.Dequantize(*attrs, "f64"), codes, scales)
    return hand_made(b, [codes, scales, y])


def drawn(names: tuple[str, ...], seed: int = 3) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=[SIZES[name] for name in names])


def test_the_codebook_holds_the_quantiles_of_a_normal_distribution() -> None:
    last = 0.9677083  # the quantile of the largest level, as the authors' code has it
    low = -norm.ppf(np.linspace(last, 0.5, 8)[:-1])
    high = norm.ppf(np.linspace(last, 0.5, 9)[:-1])
    levels = np.sort([*low, 0.0, *high])
    np.testing.assert_allclose(NF4, levels / levels.max(), atol=2e-7)


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("bits", BITS)
def test_codes_and_scales_are_those_written_out_by_hand(bits: int, names: tuple[str, ...]) -> None:
    x, at = drawn(names), names.index("embed")
    x[(0,) * at] = 0.0  # blocks of zeros among them
    codes, scales, y = evaluate(there_and_back(bits, names), "main", {"x": x}).values()
    wanted = coded(x, at, 4, bits)
    np.testing.assert_array_equal(codes, packed(wanted.codes, at) if bits == 4 else wanted.codes)
    np.testing.assert_allclose(scales, wanted.scales, rtol=1e-15)
    np.testing.assert_allclose(y, wanted.value, rtol=1e-15)


@pytest.mark.parametrize("bits", BITS)
def test_no_element_moves_by_more_than_half_a_step(bits: int) -> None:
    names = ("rows", "embed", "ffn")
    x = drawn(names)
    _, scales, y = evaluate(there_and_back(bits, names), "main", {"x": x}).values()
    steps = [high - low for low, high in pairwise(NF4)] if bits == 4 else [1.0]
    bound = np.repeat(scales, 4, axis=1) * max(steps) / 2
    assert np.all(np.abs(x - y) <= bound * (1 + 1e-12))
    again = evaluate(there_and_back(bits, names), "main", {"x": y})
    np.testing.assert_allclose(again["y2"], y, rtol=1e-12)


@pytest.mark.parametrize("bits", BITS)
def test_every_code_stands_for_its_level(bits: int) -> None:
    sizes = {"embed": 512, "embed.codes": 256, "embed.blocks": 4}
    b = Builder("main", Sizes(sizes))
    codes = b.input("codes", tensor({4: "u8", 8: "i8"}[bits], CODES[bits]))
    scales = b.input("scales", tensor("f32", "embed.blocks"))
    attrs = ops.Dequantize("embed", CODES[bits], "embed.blocks", bits, "f64")
    program = hand_made(b, [b.one(attrs, codes, scales)])
    scale = np.array([1.0, 2.0, 0.5, 3.0])
    held = np.arange(256) if bits == 4 else np.arange(512) // 2 - 128
    pairs = [level for high in NF4 for low in NF4 for level in (high, low)]
    levels = np.array(pairs) if bits == 4 else held
    given = {"codes": held, "scales": scale}
    (y,) = evaluate(program, "main", given).values()
    np.testing.assert_array_equal(y, levels * np.repeat(scale, 128))
    made = planned(program)
    (found,) = results(Executor(made.plan, made.source), "main", given).values()
    np.testing.assert_array_equal(found, y)


def test_a_value_goes_to_the_nearer_level_and_between_two_to_the_lower() -> None:
    sizes = {"embed": 32, "embed.codes": 16, "embed.blocks": 1}
    b = Builder("main", Sizes(sizes))
    attrs = ops.Quantize("embed", "embed.codes", "embed.blocks", 4)
    found = b.emit(attrs, b.input("x", tensor("f64", "embed")))
    x = np.array([*MIDPOINTS, *(np.nextafter(m, 1) for m in MIDPOINTS), 1.0, -1.0])
    codes = evaluate(hand_made(b, found), "main", {"x": x})["y0"]
    each = np.stack((codes // 16, codes % 16), axis=-1).reshape(-1)
    np.testing.assert_array_equal(each, [*range(15), *range(1, 16), 15, 0])


@pytest.mark.parametrize("names", ORDERS)
@pytest.mark.parametrize("bits", BITS)
def test_the_plan_computes_the_same(bits: int, names: tuple[str, ...]) -> None:
    program = there_and_back(bits, names)
    verify(program)
    given = {"x": drawn(names).astype(np.float32).astype(np.float64)}
    made, wanted = planned(program), evaluate(program, "main", given)
    found = results(Executor(made.plan, made.source), "main", given)
    np.testing.assert_array_equal(found["y0"], wanted["y0"])
    for name in ("y1", "y2"):  # scales are f32 there
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-7)


@pytest.mark.parametrize("bits", BITS)
def test_every_rank_rounds_its_own_blocks(bits: int) -> None:
    kind = Type("f64", (Dim("rows", ("data",)), Dim("embed", ("tensor",)), Dim("ffn")))
    b = Builder("main", Sizes(SIZES, MESH))
    attrs = "embed", CODES[bits], "embed.blocks", bits
    codes, scales = b.emit(ops.Quantize(*attrs), b.input("x", kind))
    y = b.one(ops.Dequantize(*attrs, "f64"), codes, scales)
    assert b.types[y] == kind
    function = b.finish([codes, scales, y], ["codes", "scales", "y"])
    program = program_of(function, level="sharded", mesh=MESH, dims=SIZES)
    verify(program)
    assert parse_program(print_program(program)) == program
    x = {"x": drawn(("rows", "embed", "ffn"))}
    here, there = evaluate(program, "main", x), evaluate(erase(program), "main", x)
    for name, found in here.items():
        np.testing.assert_array_equal(found, there[name])


Built = Callable[[Builder], object]
REFUSED: dict[str, Built] = {
    "holds no embed": lambda b: b.emit(
        ops.Quantize("embed", "embed.blocks", "embed.blocks", 4),
        b.input("x", tensor("f32", "embed")),
    ),
    "does not divide": lambda b: b.emit(
        ops.Quantize("embed", "embed", "ffn", 8), b.input("x", tensor("f32", "embed"))
    ),
    "share a byte": lambda b: b.emit(
        ops.Quantize("embed", "embed.codes", "embed", 4), b.input("x", tensor("f32", "embed"))
    ),
    "is not quantised": lambda b: b.emit(
        ops.Quantize("embed", "embed", "embed.blocks", 8),
        b.input("x", Type("f32", (Dim("embed"),), ("data",))),
    ),
    "zig-zag": lambda b: b.emit(
        ops.Quantize("embed", "embed", "embed.blocks", 8),
        b.input("x", Type("f32", (Dim("embed", ("data~",)),))),
    ),
    "holds no 4 bits": lambda b: b.emit(
        ops.Dequantize("embed", "embed.codes", "embed.blocks", 4, "f32"),
        b.input("codes", tensor("i8", "embed.codes")),
        b.input("scales", tensor("f32", "embed.blocks")),
    ),
    "scales are": lambda b: b.emit(
        ops.Dequantize("embed", "embed.codes", "embed.blocks", 4, "f32"),
        b.input("codes", Type("u8", (Dim("embed.codes", ("tensor",)),))),
        b.input("scales", tensor("f32", "embed.blocks")),
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_is_refused(reason: str) -> None:
    with pytest.raises(InternalError, match=reason):
        REFUSED[reason](Builder("main", Sizes(SIZES, Mesh(MESH.axes))))
