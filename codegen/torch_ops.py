"""Lowering of ops to torch calls: one rule an op, each writing into buffers of the plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.torch_attention import attend, positions, ring_attend, rope
from fllmc.codegen.torch_elementwise import ELEMENTWISE, number_text
from fllmc.codegen.views import matrix, quoted, shape_text
from fllmc.ir.ops import (
    AllGather,
    AllReduce,
    Attend,
    AttendGrad,
    Attrs,
    Dot,
    DotAdd,
    Elementwise,
    Fill,
    Iota,
    LocalSlice,
    Pick,
    Put,
    PutAdd,
    Random,
    ReduceMax,
    ReduceScatter,
    ReduceSum,
    Rename,
    RingAttend,
    RingAttendGrad,
    Rope,
    Share,
    Spread,
    Take,
    Transpose,
)
from fllmc.ir.program import Op
from fllmc.ir.types import Dim, Type, deals_zigzag

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


def position(text: FunctionText, dim: Dim) -> str:
    """The global position at which this rank's part of a dim begins, as bound text."""
    if not dim.axes:
        return "0"
    part = text.sizes.size(dim.name) // text.sizes.mesh.extent(dim.axes)
    return text.view(f"rt.coordinate({dim.axes!r}) * {part}")


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
    if start == "0":
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
    wanted = Type("i64", tuple(d for d in kind.dims if d.name != op.attrs.dim))
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
    if deals_zigzag(op.attrs.dim.axes):
        held = text.view(f"rt.positions({positions(text, op.attrs.dim)})")
        return [f"{text.tensor(op.results[0])}.copy_({held})"]
    (count,) = text.sizes.local_shape(text.function.types[op.results[0]])
    start = position(text, op.attrs.dim)
    if op.attrs.first:
        start = str(op.attrs.first) if start == "0" else f"{start} + {op.attrs.first}"
    stop = f"{start} + {count}" if start != "0" else str(count)
    return [f"torch.arange({start}, {stop}, out={text.tensor(op.results[0])})"]


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


def moved(name: str) -> Rule:
    """all_gather and reduce_scatter along a dim; a dim that isn't the first needs scratch."""

    def rule(text: FunctionText, op: Op, at: int) -> list[str]:
        assert isinstance(op.attrs, AllGather | ReduceScatter)
        kind = text.function.types[op.operands[0]]
        along = kind.names.index(op.attrs.dim)
        source, out = text.tensor(op.operands[0]), text.tensor(op.results[0])
        scratch = "None"
        zigzag = deals_zigzag(op.attrs.axes)
        if along or zigzag or name == "reduce_scatter":
            whole = text.function.types[op.results[0] if name == "all_gather" else op.operands[0]]
            count = text.sizes.local_elements(whole)
            scratch = text.view(text.arena(kind, text.offset(at, 0), (count,)))
        site = text.sites[text.function.name, at]
        deal = ", zigzag=True" if zigzag else ""
        return [f"rt.{name}({site}, {source}, {out}, {along}, {scratch}{deal})"]

    return rule


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


TORCH: Final[Mapping[type[Attrs], Rule]] = {
    **{attrs: elementwise for attrs in ELEMENTWISE if issubclass(attrs, Elementwise)},
    AllGather: moved("all_gather"),
    AllReduce: all_reduce,
    Attend: attend,
    AttendGrad: attend,
    RingAttend: ring_attend,
    RingAttendGrad: ring_attend,
    Dot: dot,
    DotAdd: dot,
    Fill: fill,
    Iota: iota,
    LocalSlice: local_slice,
    Pick: pick,
    Put: put,
    PutAdd: put,
    Random: random,
    ReduceMax: reduction("amax"),
    ReduceScatter: moved("reduce_scatter"),
    ReduceSum: reduction("sum"),
    Rename: same_storage,
    Share: same_storage,
    Rope: rope,
    Spread: spread,
    Take: take,
    Transpose: transpose,
}
