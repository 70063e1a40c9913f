"""Lowering of ops to torch calls: one rule an op, each writing into buffers of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fllmc.codegen import torch_experts as experts
from fllmc.codegen.function_text import FunctionText, position
from fllmc.codegen.packing import adjoin_in, packed_bytes
from fllmc.codegen.torch_attention import attend, number, positions, ring_attend, rope
from fllmc.codegen.torch_blockwise import blockwise
from fllmc.codegen.torch_elementwise import ELEMENTWISE, number_text
from fllmc.codegen.torch_sequence import conv, recur
from fllmc.codegen.torch_shift import shift
from fllmc.codegen.views import matrix, quoted, shape_text
from fllmc.ir.ops import (
    AllGather,
    AllReduce,
    AllToAll,
    Attend,
    AttendGrad,
    Attrs,
    Chunk,
    Coalesced,
    Combine,
    Conv,
    ConvInput,
    ConvWeight,
    Dequantize,
    Dispatch,
    Dot,
    DotAdd,
    Elementwise,
    ExchangeRows,
    Fill,
    FromHost,
    GroupedDot,
    GroupedOuter,
    Iota,
    LocalSlice,
    Number,
    Pick,
    Put,
    PutAdd,
    Quantize,
    Random,
    Record,
    Recur,
    RecurGrad,
    ReduceMax,
    ReduceScatter,
    ReduceSum,
    Reindex,
    Rename,
    RingAttend,
    RingAttendGrad,
    Rope,
    Share,
    Shift,
    Spread,
    Take,
    Tally,
    ToHost,
    TopK,
    Transpose,
    Unchunk,
    Wait,
)
from fllmc.ir.program import Op
from fllmc.ir.types import DTYPE_BYTES, Type, deals_zigzag

Rule = Callable[[FunctionText, Op, int], list[str]]


def elementwise(text: FunctionText, op: Op, at: int) -> list[str]:
    """Any elementwise op outside a group."""
    del at
    kind = text.function.types[op.results[0]]
    out = text.tensor(op.results[0])
    if op.kind == "stop":
        return []
    return ELEMENTWISE[type(op.attrs)]([text.operand(v, kind) for v in op.operands], out)


def dot(text: FunctionText, op: Op, at: int) -> list[str]:
    """One matrix multiplication, batched when the operands share dims that stay."""
    del at
    assert isinstance(op.attrs, Dot)
    adds = isinstance(op.attrs, DotAdd)
    a, b = op.operands[-2:]
    kind_a, kind_b = text.function.types[a], text.function.types[b]
    contract = [name for name in kind_a.names if name in op.attrs.contract]
    batch = [n for n in kind_a.names if n in kind_b.names and n not in contract]
    own_a = [n for n in kind_a.names if n not in kind_b.names]
    own_b = [n for n in kind_b.names if n not in kind_a.names]
    sizes = text.sizes

    def view(value: int, *groups: list[str]) -> str:
        kind = text.function.types[value]
        return text.view(matrix(text.tensor(value), kind, sizes, groups))

    left, right = view(a, batch, own_a, contract), view(b, batch, contract, own_b)
    out = view(op.results[0], batch, own_a, own_b)
    if not adds:
        return [f"torch.{'bmm' if batch else 'mm'}({left}, {right}, out={out})"]
    base = view(op.operands[0], batch, own_a, own_b)
    return [f"torch.{'baddbmm' if batch else 'addmm'}({base}, {left}, {right}, out={out})"]


def reduction(name: str) -> Rule:
    """torch.sum or torch.amax over dims by position."""

    def rule(text: FunctionText, op: Op, at: int) -> list[str]:
        del at
        assert isinstance(op.attrs, ReduceSum | ReduceMax)
        kind = text.function.types[op.operands[0]]
        dims = shape_text([kind.names.index(dim) for dim in op.attrs.dims])
        source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
        return [f"torch.{name}({source}, dim={dims}, out={out})"]

    return rule


def take(text: FunctionText, op: Op, at: int) -> list[str]:
    """A lookup; positions held by other ranks give zeros."""
    del at
    assert isinstance(op.attrs, Take)
    table, index = op.operands
    kind = text.function.types[table]
    rest = [name for name in kind.names if name != op.attrs.dim]
    rows = text.view(matrix(text.tensor(table), kind, text.sizes, ([op.attrs.dim], rest)))
    kind_out = text.function.types[op.results[0]]
    names = text.function.types[index].names
    out = text.view(matrix(text.tensor(op.results[0]), kind_out, text.sizes, (names, rest)))
    flat = text.view(f"{text.tensor(index)}.view(-1)")
    start = position(text, kind.dim(op.attrs.dim))
    stretches = {part.row_dim for part in text.program.parameters if part.part_of}
    if start == "0" and op.attrs.dim not in stretches:  # else an index may lie outside
        return [f"torch.index_select({rows}, 0, {flat}, out={out})"]
    return [f"kernels.take({rows}, {flat}, {start}, {out})"]


def put(text: FunctionText, op: Op, at: int) -> list[str]:
    """Scatter-add of rows into a table, which is cleared first unless it is added to."""
    del at
    assert isinstance(op.attrs, Put)
    index, value = op.operands[-2:]
    kind, kind_out = text.function.types[value], text.function.types[op.results[0]]
    names = text.function.types[index].names
    rest = [name for name in kind.names if name not in names]
    rows = text.view(matrix(text.tensor(value), kind, text.sizes, (names, rest)))
    out_name = text.tensor(op.results[0])
    table = text.view(matrix(out_name, kind_out, text.sizes, ([op.attrs.dim.name], rest)))
    flat = text.view(f"{text.tensor(index)}.view(-1)")
    lines: list[str] = []
    if not isinstance(op.attrs, PutAdd):
        lines.append(f"{out_name}.zero_()")
    elif text.tensor(op.operands[0]) != out_name:
        lines.append(f"{out_name}.copy_({text.tensor(op.operands[0])})")
    start = position(text, op.attrs.dim)
    return [*lines, f"kernels.put_add({table}, {flat}, {rows}, {start})"]


def pick(text: FunctionText, op: Op, at: int) -> list[str]:
    """One position along a dim."""
    del at
    assert isinstance(op.attrs, Pick)
    x, index = op.operands
    kind, index_kind = text.function.types[x], text.function.types[index]
    start = position(text, kind.dim(op.attrs.dim))
    at_dim = kind.names.index(op.attrs.dim)
    wanted = Type("i64", text.function.types[op.results[0]].dims)
    shown = text.operand(index, wanted).text if index_kind.dims else text.tensor(index)
    return [
        f"kernels.pick({text.tensor(x)}, {shown}, {at_dim}, {start}, {text.tensor(op.results[0])})"
    ]


def spread(text: FunctionText, op: Op, at: int) -> list[str]:
    """A value at one position along a new last dim, zeros elsewhere."""
    del at
    assert isinstance(op.attrs, Spread)
    value, index = op.operands
    start = position(text, op.attrs.dim)
    shown = text.operand(index, text.function.types[value])
    return [
        f"kernels.spread({text.tensor(value)}, {shown.text}, {start}, {text.tensor(op.results[0])})"
    ]


def chunk(text: FunctionText, op: Op, at: int) -> list[str]:
    """Every n-th position to the same chunk, or back: a copy between strided views."""
    del at
    assert isinstance(op.attrs, Chunk | Unchunk)
    attrs, dealt = op.attrs, isinstance(op.attrs, Chunk)
    whole, parts = (*op.operands, *op.results) if dealt else (*op.results, *op.operands)
    kind = text.function.types[whole]
    place, count = kind.names.index(attrs.dim), text.sizes.size(attrs.over)
    shape = list(text.sizes.local_shape(kind))
    shape[place : place + 1] = [shape[place] // count, count]
    view = text.view(f"{text.tensor(whole)}.view({shape_text(shape)}).movedim({place + 1}, 0)")
    pair = (text.tensor(parts), view) if dealt else (view, text.tensor(parts))
    return [f"{pair[0]}.copy_({pair[1]})"]


def offload(text: FunctionText, op: Op, at: int) -> list[str]:
    """A copy between device and host memory, which the runtime counts."""
    del at
    source, target = text.tensor(op.operands[0]), text.tensor(op.results[0])
    return [f"rt.{op.kind}({source}, {target})"]


def fill(text: FunctionText, op: Op, at: int) -> list[str]:
    """A constant tensor."""
    del at
    assert isinstance(op.attrs, Fill)
    out = text.tensor(op.results[0])
    value = number_text(op.attrs.value)
    return [f"{out}.fill_({value})" if op.attrs.value else f"{out}.zero_()"]


def iota(text: FunctionText, op: Op, at: int) -> list[str]:
    """Positions along a dim."""
    del at
    assert isinstance(op.attrs, Iota)
    attrs, out = op.attrs, text.tensor(op.results[0])
    if deals_zigzag(attrs.dim.axes) or attrs.each > 1:
        held = f"{positions(text, attrs.dim)}, {attrs.each}, {attrs.first}"
        return [f"{out}.copy_({text.view(f'rt.positions({held})')})"]
    (count,) = text.sizes.local_shape(text.function.types[op.results[0]])
    start = position(text, attrs.dim)
    if attrs.first:
        start = str(attrs.first) if start == "0" else f"{start} + {attrs.first}"
    stop = f"{start} + {count}" if start != "0" else str(count)
    return [f"torch.arange({start}, {stop}, out={out})"]


def reindex(text: FunctionText, op: Op, at: int) -> list[str]:
    """Indices less the first of a stretch."""
    del at
    assert isinstance(op.attrs, Reindex)
    index, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
    return [f"torch.sub({index}, {op.attrs.first}, out={out})"]


def random(text: FunctionText, op: Op, at: int) -> list[str]:
    """Uniform numbers from counters."""
    del at
    assert isinstance(op.attrs, Random)
    attrs = op.attrs
    seed = text.number(op.operands[0])
    samples = text.tensor(op.operands[1])
    layer = text.tensor(op.operands[2]) if len(op.operands) == 3 else "None"
    shape = shape_text([text.sizes.size(dim.name) for dim in attrs.dims[1:]])
    out = text.tensor(op.results[0])
    given = f"{seed}, {samples}, {layer}, {attrs.place}"
    if any(deals_zigzag(dim.axes) for dim in attrs.dims[1:]):
        held = "".join(f"{positions(text, dim)}, " for dim in attrs.dims[1:])
        return [f"kernels.random_parts({given}, ({held}), {shape}, out={out})"]
    starts = "".join(f"{position(text, dim)}, " for dim in attrs.dims[1:])
    return [f"kernels.random({given}, ({starts}), {shape}, out={out})"]


def transpose(text: FunctionText, op: Op, at: int) -> list[str]:
    """A copy in another memory order."""
    del at
    assert isinstance(op.attrs, Transpose)
    kind = text.function.types[op.operands[0]]
    order = shape_text([kind.names.index(name) for name in op.attrs.order])
    source = text.view(f"{text.tensor(op.operands[0])}.permute({order})")
    return [f"{text.tensor(op.results[0])}.copy_({source})"]


def same_storage(text: FunctionText, op: Op, at: int) -> list[str]:
    """Nothing to do: the result is the operand's storage under other names."""
    del text, op, at
    return []


def all_reduce(text: FunctionText, op: Op, at: int) -> list[str]:
    """In place, after a copy when the operand is still needed."""
    source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
    kind = text.function.types[op.operands[0]]
    lines = [] if source == out else [f"{out}.copy_({source})"]
    site = text.sites[text.function.name, at]
    return [*lines, f"rt.all_reduce({site}, {out}, {quoted(kind.combine)})"]


def coalesced(text: FunctionText, op: Op, at: int) -> list[str]:
    """Several collectives as one, through a flat buffer for what does not adjoin."""
    assert isinstance(op.attrs, Coalesced)
    kinds = [text.function.types[value] for value in op.operands]
    kind, adjoin = kinds[0], adjoin_in(text.frame, text.function, text.sizes)
    count = packed_bytes(op, text.function, text.sizes, adjoin) // DTYPE_BYTES[kind.dtype]
    along = [k.names.index(dim) for k, dim in zip(kinds, op.attrs.dims, strict=False)]
    sources = shape_text([text.tensor(value) for value in op.operands])
    outs = shape_text([text.tensor(value) for value in op.results])
    scratch = text.view(text.arena(kind, text.offset(at, 0), (count,))) if count else "None"
    name = kind.combine if op.attrs.collective == "all_reduce" else op.attrs.collective
    site = text.sites[text.function.name, at]
    given = f"{quoted(name)}, {sources}, {outs}, {shape_text(along)}, {scratch}"
    return [f"rt.coalesced({site}, {given})"]


def moved(name: str) -> Rule:
    """all_gather and reduce_scatter along a dim; a dim that isn't the first needs scratch."""

    def rule(text: FunctionText, op: Op, at: int) -> list[str]:
        assert isinstance(op.attrs, AllGather | ReduceScatter)
        kind = text.function.types[op.operands[0]]
        along = kind.names.index(op.attrs.dim)
        source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
        scratch = "None"
        zigzag = deals_zigzag(op.attrs.axes)
        if text.frame.ops[at].scratch:
            whole = text.function.types[op.results[0] if name == "all_gather" else op.operands[0]]
            count = text.sizes.local_elements(whole)
            scratch = text.view(text.arena(kind, text.offset(at, 0), (count,)))
        site = text.sites[text.function.name, at]
        deal = ", zigzag=True" if zigzag else ""
        return [f"rt.{name}({site}, {source}, {out}, {along}, {scratch}{deal})"]

    return rule


def all_to_all(text: FunctionText, op: Op, at: int) -> list[str]:
    """Parts of one dim for parts of another, by way of what is sent and what is received."""
    assert isinstance(op.attrs, AllToAll)
    kind = text.function.types[op.operands[0]]
    gathered, scattered = (kind.names.index(n) for n in (op.attrs.gathered, op.attrs.scattered))
    shape = (2, text.sizes.local_elements(kind))
    scratch = text.view(text.arena(kind, text.offset(at, 0), shape))
    given = f"{text.tensor(op.operands[0])}, {text.tensor(op.results[0])}, {gathered}, {scattered}"
    return [f"rt.all_to_all({text.sites[text.function.name, at]}, {given}, {scratch})"]


def local_slice(text: FunctionText, op: Op, at: int) -> list[str]:
    """This rank's part of a dim."""
    del at
    assert isinstance(op.attrs, LocalSlice)
    kind = text.function.types[op.operands[0]]
    out_kind = text.function.types[op.results[0]]
    along = kind.names.index(op.attrs.dim)
    if deals_zigzag(op.attrs.axes):
        extent = text.sizes.local_shape(kind)[along]
        held = text.view(f"rt.dealt({extent}, {op.attrs.axes!r})")
        out = text.tensor(op.results[0])
        return [f"kernels.keep({text.tensor(op.operands[0])}, {along}, {held}, {out})"]
    count = text.sizes.local_shape(out_kind)[along]
    start = text.view(f"rt.coordinate({op.attrs.axes!r}) * {count}")
    part = text.view(f"{text.tensor(op.operands[0])}.narrow({along}, {start}, {count})")
    return [f"{text.tensor(op.results[0])}.copy_({part})"]


def wait(text: FunctionText, op: Op, at: int) -> list[str]:
    """Nothing is computed until what was started is there."""
    del op
    return [f"rt.wait({text.handle(text.waits[at])})"]


TORCH: Final[Mapping[type[Attrs], Rule]] = {
    **{attrs: elementwise for attrs in ELEMENTWISE if issubclass(attrs, Elementwise)},
    AllGather: moved("all_gather"),
    AllReduce: all_reduce,
    AllToAll: all_to_all,
    Attend: attend,
    Coalesced: coalesced,
    AttendGrad: attend,
    RingAttend: ring_attend,
    RingAttendGrad: ring_attend,
    Conv: conv,
    ConvInput: conv,
    ConvWeight: conv,
    Recur: recur,
    RecurGrad: recur,
    Combine: experts.moved,
    Dequantize: blockwise,
    Dispatch: experts.moved,
    Dot: dot,
    DotAdd: dot,
    ExchangeRows: experts.exchange_rows,
    Fill: fill,
    GroupedDot: experts.grouped_dot,
    GroupedOuter: experts.grouped_outer,
    Iota: iota,
    LocalSlice: local_slice,
    Chunk: chunk,
    Unchunk: chunk,
    **dict.fromkeys((FromHost, ToHost), offload),
    Number: number,
    Pick: pick,
    Record: lambda text, op, at: [f"{text.tensor(op.results[0])}.zero_()"],
    **dict.fromkeys((Put, PutAdd), put),
    Quantize: blockwise,
    Random: random,
    ReduceMax: reduction("amax"),
    ReduceScatter: moved("reduce_scatter"),
    ReduceSum: reduction("sum"),
    Reindex: reindex,
    **dict.fromkeys((Rename, Share), same_storage),
    Rope: rope,
    Shift: shift,
    Spread: spread,
    Take: take,
    Tally: experts.tally,
    TopK: experts.top_k,
    Transpose: transpose,
    Wait: wait,
}
