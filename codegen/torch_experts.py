"""Lowering of mixtures of experts to torch calls. All operands are matrices by views alone."""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.codegen.function_text import FunctionText, position
from fllmc.codegen.views import product, shape_text
from fllmc.ir.ops import Combine, Dispatch, ExchangeRows, GroupedDot, GroupedOuter, Tally, TopK
from fllmc.ir.ops.experts import own_axes
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, Type


def blocks(text: FunctionText, value: int, *stops: int) -> str:
    """A view with the value's dims up to each stop as one, and the rest as the last."""
    shape = text.sizes.local_shape(text.function.types[value])
    starts = (0, *stops)
    merged = [product(shape[a:b]) for a, b in zip(starts, (*stops, len(shape)), strict=True)]
    return text.view(f"{text.tensor(value)}.view({shape_text(merged)})")


def top_k(text: FunctionText, op: Op, at: int) -> list[str]:
    """Values and indices."""
    del at
    assert isinstance(op.attrs, TopK)
    dim = text.function.types[op.operands[0]].names.index(op.attrs.dim)
    out = ", ".join(text.tensor(value) for value in op.results)
    return [f"kernels.top_k({text.tensor(op.operands[0])}, {dim}, out=({out}))"]


def tally(text: FunctionText, op: Op, at: int) -> list[str]:
    """Counts of this rank's experts."""
    del at
    assert isinstance(op.attrs, Tally)
    lead = len(text.function.types[op.results[0]].dims) - 1
    index, out = blocks(text, op.operands[0], lead), blocks(text, op.results[0], lead)
    return [f"kernels.tally({index}, {position(text, op.attrs.experts)}, {out})"]


def moved(text: FunctionText, op: Op, at: int) -> list[str]:
    """Tokens to rows, or rows to tokens."""
    del at
    attrs = op.attrs
    assert isinstance(attrs, Dispatch | Combine)
    index, sizes = text.function.types[op.operands[1]], text.sizes
    lead, apart = len(index.dims) - 2, isinstance(attrs, Combine) and attrs.apart
    kind = text.function.types[op.operands[0]]
    if isinstance(attrs, Dispatch):
        of: Sequence[Dim] = attrs.to
        own = lead + 1 + (attrs.choices in kind.names)
        source = blocks(text, op.operands[0], lead, own)
        out = blocks(text, op.results[0], lead, lead + len(of))
    else:
        of = kind.dims[lead : lead + len(attrs.of)]
        source = blocks(text, op.operands[0], lead, lead + len(of))
        out = blocks(text, op.results[0], lead, lead + 1 + apart)
    slots = sizes.size(of[1].name) if len(of) == 2 else 0
    room = sizes.size(attrs.along) * sizes.size(attrs.choices)
    groups = 1 if slots else sizes.size(of[0].name) // room
    start = first_row(text, of[0], index, attrs.along, slots)
    given = f"{blocks(text, op.operands[1], lead)}, {sizes.size(index.index)}, {groups}, {slots}"
    return [f"kernels.{attrs.kind}({source}, {given}, {start}, {out})"]


def first_row(text: FunctionText, of: Dim, index: Type, along: str, slots: int) -> str:
    """The number of the first row that a rank holds, among those of its part of a sequence."""
    own = own_axes(of, index, along)
    if not own:
        return "0"
    held = text.sizes.size(of.name) // text.sizes.mesh.extent(of.axes)
    return f"rt.coordinate({own!r}) * {held * max(slots, 1)}"


def exchange_rows(text: FunctionText, op: Op, at: int) -> list[str]:
    """Rows in use to the ranks of their experts or back, by way of what is sent and received."""
    attrs = op.attrs
    assert isinstance(attrs, ExchangeRows)
    rows, index = op.operands
    kind, chosen = text.function.types[rows], text.function.types[index]
    lead = len(chosen.dims) - 2
    count = sum(text.sizes.local_elements(text.function.types[v]) for v in (rows, op.results[0]))
    scratch = text.view(text.arena(kind, text.offset(at, 0), (count,)))
    given, out = (blocks(text, value, lead, lead + 1) for value in (rows, op.results[0]))
    choices = f"{blocks(text, index, lead)}, {text.sizes.size(chosen.index)}"
    site = text.sites[text.function.name, at]
    return [f"rt.exchange_rows({site}, {given}, {choices}, {attrs.back}, {out}, {scratch})"]


def grouped_dot(text: FunctionText, op: Op, at: int) -> list[str]:
    """Runs of rows times matrices, which are read in either order."""
    del at
    assert isinstance(op.attrs, GroupedDot)
    rows, weight, index = op.operands
    lead = len(text.function.types[index].dims) - 2
    kind, contract = text.function.types[weight], op.attrs.contract
    inner = 1 + len(contract)
    if kind.names[1:inner] == contract:
        matrices = blocks(text, weight, 1, inner)
    else:
        whole = blocks(text, weight, 1, len(kind.names) - len(contract))
        matrices = text.view(f"{whole}.transpose(1, 2)")
    chosen = f"{blocks(text, index, lead)}, {position(text, kind.dims[0])}"
    given = f"{blocks(text, rows, lead, lead + 1)}, {matrices}, {chosen}"
    return [f"kernels.grouped_dot({given}, {blocks(text, op.results[0], lead, lead + 1)})"]


def grouped_outer(text: FunctionText, op: Op, at: int) -> list[str]:
    """Sums of outer products for each expert."""
    del at
    assert isinstance(op.attrs, GroupedOuter)
    a, b, index = op.operands
    lead = len(text.function.types[index].dims) - 2
    inner = 1 + len(text.function.types[a].dims) - lead - 1
    given = ", ".join(blocks(text, value, lead, lead + 1) for value in (a, b))
    experts = text.function.types[op.results[0]].dims[0]
    chosen = f"{blocks(text, index, lead)}, {position(text, experts)}"
    out = blocks(text, op.results[0], 1, inner)
    return [f"kernels.grouped_outer({given}, {chosen}, {out})"]
