"""A fused group on a CPU: a loop over tiles of rows that stay in cache."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fllmc.codegen.function_text import FunctionText
from fllmc.codegen.tiles import group_rows, rows_of
from fllmc.codegen.torch_elementwise import ELEMENTWISE, Operand
from fllmc.codegen.views import aligned, shape_text
from fllmc.ir.ops import Bucketed, Fused, Pick, ReduceMax, ReduceSum, Spread
from fllmc.ir.plan import Place
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Type


class FusedText:
    """Writes one group into the text of the function that runs it."""

    def __init__(self, text: FunctionText, op: Op, at: int):
        assert isinstance(op.attrs, Bucketed | Fused)
        self.text = text
        self.op = op
        self.body: Function = text.program.function(op.attrs.function)
        self.frame = text.plan.frame(op.attrs.function)
        self.base = text.frame.ops[at].frame
        self.rows = rows_of(op)
        self.count = group_rows(self.body, self.rows, text.sizes)
        self.tile = self.frame.tile_rows
        self.whole: dict[str, None] = {}
        self.scratch: dict[str, None] = {}
        self.before: list[str] = []
        self.lines: list[str] = []

    def has_rows(self, kind: Type) -> bool:
        """Whether a value is cut into tiles."""
        return kind.names[: len(self.rows)] == self.rows

    def inner(self, kind: Type) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """The dims of a row with their local sizes."""
        rest = kind.without(self.rows)
        return rest.names, self.text.sizes.local_shape(rest)

    def tensor(self, value: int) -> str:
        """The name of a value: a tile of it inside the loop, or the whole of one without rows."""
        kind = self.body.types[value]
        place = self.frame.places[value]
        if not self.has_rows(kind):
            return self.outer(value)
        _, shape = self.inner(kind)
        if place.kind == "frame":
            offset = f"base + {self.base + place.number}"
            name = self.text.view(self.text.arena(kind, offset, (self.tile, *shape)))
            self.scratch[name] = None
            return name
        name = self.text.view(f"{self.outer(value)}.view({shape_text((self.count, *shape))})")
        self.whole[name] = None
        return name

    def tiled(self, outer: str, value: int) -> str:
        """The tile view of a caller's tensor that has the rows and dims of a group's value."""
        _, shape = self.inner(self.body.types[value])
        name = self.text.view(f"{outer}.view({shape_text((self.count, *shape))})")
        self.whole[name] = None
        return name

    def outer(self, value: int) -> str:
        """The caller's tensor that a value of the group stands for."""
        place = self.frame.places[value]
        return self.given(place.number) if place.kind == "argument" else self.made(place.number)

    def given(self, number: int) -> str:
        """The caller's tensor for an input of the group."""
        return self.text.tensor(self.op.operands[number])

    def made(self, number: int) -> str:
        """The caller's tensor for a result of the group."""
        return self.text.tensor(self.op.results[number])

    def number(self, number: int) -> str:
        """The caller's host scalar for an input of the group."""
        return self.text.number(self.op.operands[number])

    def operand(self, value: int, result: Type) -> Operand:
        """An operand aligned to a row of the result."""
        if self.frame.places[value].kind == "host":
            return Operand(self.number(value), True)
        kind = self.body.types[value]
        name = self.tensor(value)
        if not self.has_rows(kind):
            wanted, _ = self.inner(result)
            shape = self.text.sizes.local_shape(kind)
            return Operand(self.text.view(aligned(name, kind.names, shape, wanted)), False, False)
        names, shape = self.inner(kind)
        wanted, _ = self.inner(result)
        text = self.tile_view(name, aligned(name, names, (1, *shape), wanted, 1))
        return Operand(text, False, len(names) == len(wanted))

    def tile_view(self, name: str, text: str) -> str:
        """Another view of a tiled tensor, cut into tiles as that tensor is."""
        if text == name:
            return name
        new = self.text.view(text)
        (self.scratch if name in self.scratch else self.whole)[new] = None
        return new

    def emit(self, op: Op) -> list[str]:
        """The lines of one op of the group."""
        value = op.results[0]
        kind = self.body.types[value]
        match op.attrs:
            case ReduceSum(dims=dims) | ReduceMax(dims=dims):
                return self.reduction(op, dims)
            case Pick():
                x, index = (self.tensor(v) for v in op.operands)
                start = self.start(self.body.types[op.operands[0]], op.attrs.dim)
                last = len(self.inner(self.body.types[op.operands[0]])[0])
                return [f"kernels.pick({x}, {index}, {last}, {start}, {self.tensor(value)})"]
            case Spread():
                x, index = (self.tensor(v) for v in op.operands)
                start = self.start(kind, op.attrs.dim.name)
                return [f"kernels.spread({x}, {index}, {start}, {self.tensor(value)})"]
            case _:
                given = [self.operand(v, kind) for v in op.operands]
                return ELEMENTWISE[type(op.attrs)](given, self.tensor(value))

    def start(self, kind: Type, dim: str) -> str:
        """The global position at which this rank's part of a dim begins."""
        axes = kind.axes_of(dim)
        if not axes:
            return "0"
        part = self.text.sizes.size(dim) // self.text.sizes.mesh.extent(axes)
        return self.text.view(f"rt.coordinate({axes!r}) * {part}")

    def reduction(self, op: Op, dims: Sequence[str]) -> list[str]:
        """A reduction within rows, or a sum over rows gathered tile by tile."""
        kind = self.body.types[op.operands[0]]
        names, _ = self.inner(kind)
        source, out = self.tensor(op.operands[0]), self.tensor(op.results[0])
        positions = [1 + names.index(dim) for dim in dims if dim not in self.rows]
        if self.has_rows(self.body.types[op.results[0]]):
            name = "sum" if isinstance(op.attrs, ReduceSum) else "amax"
            return [f"torch.{name}({source}, dim={shape_text(positions)}, out={out})"]
        every = shape_text([0, *positions])
        if self.tile == self.count:
            return [f"torch.sum({source}, dim={every}, out={out})"]
        self.before.append(f"{out}.zero_()")
        at = self.body.ops.index(op)
        offset = f"base + {self.base + self.frame.ops[at].scratch[0]}"
        part = self.text.view(self.text.arena(self.body.types[op.results[0]], offset))
        return [f"torch.sum({source}, dim={every}, out={part})", f"{out}.add_({part})"]

    def write(self) -> None:
        """Append the group's lines to the caller's text."""
        for op in self.body.ops:
            if op.kind != "stop":  # an alias, see codegen/memory.py
                self.lines += self.emit(op)
        for result, value in enumerate(self.body.results):
            if self.frame.places[value] != Place("result", result):
                self.lines.append(
                    f"{self.tiled(self.made(result), value)}.copy_({self.tensor(value)})"
                )
        out = self.text.body
        out += self.before
        if self.tile == self.count:
            out += self.lines
            return
        whole, scratch = list(self.whole), list(self.scratch)
        tiles = self.text.view(
            f"rt.tiles({self.count}, {self.tile}, ({', '.join(whole)},), "
            f"({', '.join(scratch)}{',' if scratch else ''}))"
        )
        # Names of their own: assigned in the loop, the views' names would be unbound elsewhere.
        names = [*whole, *scratch]
        listed = ", ".join(f"{name}_" for name in names) + ("," if len(names) == 1 else "")
        out.append(f"for {listed} in {tiles}:")
        words = re.compile(rf"\b({'|'.join(names)})\b")
        out += [words.sub(r"\1_", f"    {line}") for line in self.lines]
