"""What the compiler knows of each kernel: how it is called, what it asks for and what it costs.

Costs are of one call on one rank. FLOPs count a multiplication and an addition as two and leave out
exponentials; a causal mask halves the work. Bytes are those that must move between memory and the
processor: every operand read once, every result written once, plus copies that the kernel makes
whatever the operands' strides. `width` is bytes per element of the floating-point operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec


class Cost(msgspec.Struct, frozen=True):
    """Floating-point operations, and bytes moved, of one call."""

    flops: int
    bytes: int


class Kernel(msgspec.Struct, frozen=True):
    """One function of `fllmc.kernels.torch_ops`.

    `gives` is empty for a kernel that returns its result; all others write into the named argument.
    `cost` takes the sizes named by its keyword arguments.
    """

    name: str
    family: str
    takes: tuple[tuple[str, str], ...]
    gives: str
    meaning: str
    needs: tuple[str, ...]
    cost: Callable[..., Cost]


INDEX: Final = 8  # bytes of an index


def attend(
    *,
    batch: int,
    heads: int,
    groups: int,
    queries: int,
    keys: int,
    dim: int,
    width: int,
    causal: bool = False,
) -> Cost:
    """Two products per score; q, o and k, v once, the log-sum-exp in 4 bytes (8 for float64)."""
    flops = 4 * batch * heads * queries * keys * dim
    rows, columns = batch * heads * queries, batch * groups * keys
    sums = rows * max(4, width)
    return Cost(flops // 2 if causal else flops, 2 * (rows + columns) * dim * width + sums)


def attend_grad(
    *,
    batch: int,
    heads: int,
    groups: int,
    queries: int,
    keys: int,
    dim: int,
    width: int,
    causal: bool = False,
) -> Cost:
    """Five products per score; q, o, d_out, dq and k, v, dk, dv once."""
    flops = 10 * batch * heads * queries * keys * dim
    rows, columns = batch * heads * queries, batch * groups * keys
    sums = rows * max(4, width)
    return Cost(flops // 2 if causal else flops, 4 * (rows + columns) * dim * width + sums)


def rope(*, elements: int, seq: int, dim: int, width: int) -> Cost:
    """Two multiplications and an addition per element."""
    return Cost(3 * elements, 2 * elements * width + seq * dim * max(4, width))


def rope_table(*, seq: int, dim: int, width: int) -> Cost:
    """One angle per pair, its cosine and sine."""
    return Cost(seq * dim // 2, seq * dim * max(4, width))


def take(*, indices: int, columns: int, width: int) -> Cost:
    """A row read and written per index."""
    return Cost(0, 2 * indices * columns * width + indices * INDEX)


def put_add(*, indices: int, columns: int, width: int) -> Cost:
    """A row read, and one read, added to and written, per index."""
    return Cost(indices * columns, 3 * indices * columns * width + indices * INDEX)


def pick(*, elements: int, width: int) -> Cost:
    """`elements` of the result: each is read and written at an index."""
    return Cost(0, elements * (2 * width + INDEX))


def keep(*, elements: int, width: int) -> Cost:
    """`elements` of the result: each is read and written."""
    return Cost(0, 2 * elements * width)


def spread(*, elements: int, columns: int, width: int) -> Cost:
    """`elements` of the value: each is read, and a whole row is written."""
    return Cost(0, elements * ((2 + columns) * width + INDEX))


def random(*, elements: int, width: int) -> Cost:
    """Integer work alone: ten rounds an element."""
    return Cost(0, elements * width)


def top_k(*, elements: int, chosen: int, width: int) -> Cost:
    """`elements` scores read, `chosen` values and indices written; comparisons are not counted."""
    return Cost(0, elements * width + chosen * (width + INDEX))


def tally(*, indices: int, counts: int) -> Cost:
    """An index read for each choice, a number written for each expert."""
    return Cost(0, (indices + counts) * INDEX)


def exchanged(*, indices: int, rows: int, columns: int, width: int) -> Cost:
    """Of dispatch and combine: a row read and one written for each row that there is room for."""
    return Cost(0, 2 * rows * columns * width + indices * INDEX)


def grouped(*, rows: int, experts: int, columns: int, inner: int, width: int) -> Cost:
    """Of both grouped products: `rows` are those in use, each with one matrix of its expert."""
    moved = rows * (columns + inner) + experts * columns * inner
    return Cost(2 * rows * columns * inner, moved * width)


def recur(
    *, batch: int, seq: int, heads: int, groups: int, dim: int, columns: int, width: int
) -> Cost:
    """`columns` numbers of a value; pairs within chunks of 64, the state written and read."""
    tokens = batch * seq * heads
    moved = 2 * batch * seq * (groups * dim + heads * columns) + tokens
    return Cost(tokens * (4 * dim * columns + 64 * (dim + columns)), moved * width)


def recur_grad(
    *, batch: int, seq: int, heads: int, groups: int, dim: int, columns: int, width: int
) -> Cost:
    """Three recurrences; the operands, and as much for their gradients."""
    one = recur(
        batch=batch, seq=seq, heads=heads, groups=groups, dim=dim, columns=columns, width=width
    )
    return Cost(3 * one.flops, 2 * one.bytes)


def convolved(*, elements: int, inner: int, columns: int, width: int) -> Cost:
    """Of conv and its gradients: `elements` of the result, each of `inner` products; `columns` of
    x and w."""
    return Cost(2 * elements * inner, (elements + columns) * width)


def quantized(*, elements: int, block: int, bits: int, width: int) -> Cost:
    """A value read or written, its codes and the 4 bytes of each block's scale written or read."""
    return Cost(elements, elements * width + elements * bits // 8 + elements // block * 4)


_Q, _K = "[batch, heads, queries, dim]", "[batch, groups, keys, dim]"
_O, _V = "[batch, heads, queries, value]", "[batch, groups, keys, value]"
_LSE = "[batch, heads, queries], f32, or f64 for f64"
_BLOCKS, _SCALES = "[blocks, block, inner]", "f32 [blocks, inner]"
_CODES = "i8 [blocks, block, inner], or u8 [blocks, block / 2, inner] at 4 bits"
_GROUPS = "groups divides heads"
_QKV: Final = (("q", _Q), ("k", _K), ("v", _V))
_BACK: Final = (("o", _O), ("lse", _LSE), ("d_out", _O))
_GIVEN: Final = ("out", f"(o, lse {_LSE})")
_GRADS: Final = ("out", "(dq, dk, dv, then of sinks and of bias)")
_FIRST: Final = ("first", "the first query's position among the keys, or so that the last is last")
_SCORES: Final = (("causal", "bool"), ("window", "keys, or 0"), ("cap", "number, or 0"))
_EXTRAS: Final = (
    ("sinks", "[heads], or none"), ("bias", "[heads, distances], or none"),
    ("origin", "place of distance 0 in the bias"), ("starts", "[batch, queries], or none"),
)  # fmt: skip
_APART = "out overlaps no operand"
_POSITIONS = "stretches of positions"
_START = "start: the global position at which this rank's stretch of the indexed dim begins"

_X = "[batch, groups, channels, positions...]"
_W, _Y = "[groups, own, channels, taps...]", "[batch, groups, own, windows...]"
_WINDOWS: Final = (("stride", "of each dim"), ("before", "zeros before each dim"))
_KEYS, _VALUES = "[batch, seq, groups, dim]", "[batch, seq, heads, columns]"
_ROWS = "[batch, seq, heads]"
_STATE: Final = (
    ("q", _KEYS), ("k", _KEYS), ("v", _VALUES), ("g", f"{_ROWS}, logarithms of decays"),
    ("w", f"{_ROWS}, or None"),
)  # fmt: skip

_CHOICES = "i64 [sequences, choices]"
_SEATS: Final = (
    ("index", _CHOICES), ("experts", "how many there are"), ("groups", "of experts, if no slots"),
    ("slots", "of an expert, or 0"), ("start", "number of the first row"),
)  # fmt: skip

KERNELS: Final[tuple[Kernel, ...]] = (
    Kernel(
        "attend",
        "attention",
        (*_QKV, ("scale", "number"), *_SCORES, _FIRST, *_EXTRAS, _GIVEN),
        "out",
        "softmax(scores) v, and the log-sum-exp of the scores",
        (_GROUPS, _APART),
        attend,
    ),
    Kernel(
        "attend_grad",
        "attention",
        (*_QKV, *_BACK, ("scale", "number"), *_SCORES, _FIRST, *_EXTRAS, _GRADS),
        "out",
        "the gradients of attend's operands",
        (_GROUPS, _APART),
        attend_grad,
    ),
    Kernel(
        "attend_part",
        "attention_parts",
        (*_QKV, ("positions", _POSITIONS), ("scale", "number"), *_SCORES, *_EXTRAS, _GIVEN),
        "out",
        "attend, with the queries at these positions of the keys",
        (_GROUPS, _APART),
        attend,
    ),
    Kernel(
        "attend_part_grad",
        "attention_parts",
        (*_QKV, *_BACK, ("positions", _POSITIONS), ("scale", "number"), *_SCORES, *_EXTRAS, _GRADS),
        "out",
        "the gradients of attend_part's operands",
        (_GROUPS, _APART),
        attend_grad,
    ),
    Kernel(
        "keep",
        "indexing",
        (("x", "any dims"), ("dim", "dim of x"), ("positions", _POSITIONS), ("out", "as x")),
        "out",
        "the given stretches of a dim, one behind the other",
        (_APART,),
        keep,
    ),
    Kernel(
        "rope",
        "rope",
        (("x", "any dims"), ("table", "(cos, sin), each [seq, pairs]"), ("along", "dim of x"),
         ("dim", "dim of x"), ("layout", "half or interleaved"), ("inverse", "bool"),
         ("behind", "elements"), ("out", "as x")),
        "out",
        "pairs of dim turned by their position along `along`",
        ("dim has room for the pairs", "the table is f64 for f64, else f32", _APART),
        rope,
    ),
    Kernel(
        "rope_table",
        "rope",
        (("seq", "size"), ("speeds", "[pairs]"), ("dtype", "of x"), ("device", "of x"),
         ("magnitude", "number")),
        "",
        "magnitude times cosines and sines of position * speed, each [seq, pairs]",
        (),
        rope_table,
    ),
    Kernel(
        "take",
        "indexing",
        (("table", "[rows, columns]"), ("index", "i64 [indices]"), ("start", "position"),
         ("out", "[indices, columns]")),
        "out",
        "table[index - start], zeros outside",
        (_START, _APART),
        take,
    ),
    Kernel(
        "put_add",
        "indexing",
        (("table", "[rows, columns]"), ("index", "i64 [indices]"), ("rows", "[indices, columns]"),
         ("start", "position")),
        "table",
        "table[index - start] += rows, those outside left out",
        (_START, "table overlaps no operand"),
        put_add,
    ),
    Kernel(
        "pick",
        "indexing",
        (("x", "any dims"), ("index", "i64, broadcasts against out"), ("dim", "dim of x"),
         ("start", "position"), ("out", "as x less dim, then the index's own dims")),
        "out",
        "x at index - start along dim, zeros outside",
        (_START, _APART),
        pick,
    ),
    Kernel(
        "spread",
        "indexing",
        (("value", "any dims"), ("index", "i64, broadcasts against value"), ("start", "position"),
         ("out", "[dims of value, columns]")),
        "out",
        "zeros, but value at index - start along the last dim",
        (_START, _APART),
        spread,
    ),
    Kernel(
        "quantize",
        "blockwise",
        (("x", _BLOCKS), ("bits", "4 or 8"), ("out", f"(codes {_CODES}, scales {_SCALES})")),
        "out",
        "the nearest level of each element in its block's scale, and the scales",
        ("block is even", _APART),
        quantized,
    ),
    Kernel(
        "dequantize",
        "blockwise",
        (("codes", _CODES), ("scales", _SCALES), ("bits", "4 or 8"), ("out", _BLOCKS)),
        "out",
        "the level of each code times its block's scale",
        ("block is even", _APART),
        quantized,
    ),
    Kernel(
        "random",
        "dropout",
        (("seed", "whole number below 2**53"), ("samples", "i64 [batch]"),
         ("layer", "i64 scalar tensor, or None"), ("place", "number of the op"),
         ("starts", "positions of the further dims"), ("shape", "global sizes of the further dims"),
         ("out", "[batch, ...]")),
        "out",
        "uniform numbers in [0, 1) by the counters of fllmc.ir.philox.uniform_at",
        ("a sample has below 2**63 elements", "layer is below 2**16"),
        random,
    ),
    Kernel(
        "random_parts",
        "dropout",
        (("seed", "whole number below 2**53"), ("samples", "i64 [batch]"),
         ("layer", "i64 scalar tensor, or None"), ("place", "number of the op"),
         ("positions", "the stretches that out holds of each further dim"),
         ("shape", "global sizes of the further dims"),
         ("out", "[batch, ...]")),
        "out",
        "uniform numbers in [0, 1) by the counters of fllmc.ir.philox.uniform_at",
        ("a sample has below 2**63 elements", "layer is below 2**16"),
        random,
    ),
    Kernel(
        "top_k",
        "experts",
        (("x", "any dims"), ("dim", "dim of x"), ("out", "(values, indices), each [..., k]")),
        "out",
        "the largest along dim in falling order, of equal ones the first, and where they are",
        (_APART,),
        top_k,
    ),
    Kernel(
        "tally",
        "experts",
        (("index", _CHOICES), ("start", "number of the first expert of out"),
         ("out", "i64 [sequences, experts]")),
        "out",
        "how often each expert is chosen",
        (_APART,),
        tally,
    ),
    Kernel(
        "dispatch",
        "experts",
        (("value", "[sequences, tokens or choices, columns]"), *_SEATS,
         ("out", "[sequences, rows, columns]")),
        "out",
        "the rows of the choices in expert layout, zeros elsewhere",
        (_APART,),
        exchanged,
    ),
    Kernel(
        "combine",
        "experts",
        (("rows", "[sequences, rows, columns]"), *_SEATS,
         ("out", "[sequences, tokens or choices, columns]")),
        "out",
        "the rows of each choice, zero where there is none, added up for a token",
        (_APART,),
        exchanged,
    ),
    Kernel(
        "grouped_dot",
        "experts",
        (("rows", "[sequences, rows, inner]"), ("weight", "[experts, inner, columns]"),
         ("index", _CHOICES), ("start", "number of the first expert of weight"),
         ("out", "[sequences, rows, columns]")),
        "out",
        "each expert's run of rows times its matrix, zeros behind the last run",
        ("a sequence chooses these experts as often as it has rows at most", _APART),
        grouped,
    ),
    Kernel(
        "grouped_outer",
        "experts",
        (("a", "[sequences, rows, inner]"), ("b", "[sequences, rows, columns]"),
         ("index", _CHOICES), ("start", "number of the first expert of out"),
         ("out", "[experts, inner, columns]")),
        "out",
        "for each expert the sum of the outer products of its rows",
        ("a sequence chooses these experts as often as it has rows at most", _APART),
        grouped,
    ),
    Kernel(
        "conv", "convolution", (("x", _X), ("w", _W), *_WINDOWS, ("out", _Y)), "out",
        "the windows of x, each times w", (_APART,), convolved,
    ),
    Kernel(
        "conv_input", "convolution", (("dy", _Y), ("w", _W), *_WINDOWS, ("out", _X)), "out",
        "the gradient of conv's x", (_APART,), convolved,
    ),
    Kernel(
        "conv_weight", "convolution", (("x", _X), ("dy", _Y), *_WINDOWS, ("out", _W)), "out",
        "the gradient of conv's w", (_APART,), convolved,
    ),
    Kernel(
        "recur",
        "recurrence",
        (*_STATE, ("out", _VALUES)),
        "out",
        "S_t q_t with S_t = exp(g_t) S_{t-1} + v_t k_t^T, or with w by the delta rule",
        (_GROUPS, _APART),
        recur,
    ),
    Kernel(
        "recur_grad",
        "recurrence",
        (*_STATE, ("dy", _VALUES), ("out", "(dq, dk, dv, dg, dw if w is given), as the operands")),
        "out",
        "the gradients of recur's operands",
        (_GROUPS, _APART),
        recur_grad,
    ),
)  # fmt: skip

BY_NAME: Final[dict[str, Kernel]] = {kernel.name: kernel for kernel in KERNELS}
