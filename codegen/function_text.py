"""The text of one generated function: what is bound once, and what runs in every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fllmc.codegen.offsets import aligned as aligned_bytes
from fllmc.codegen.torch_elementwise import Number, Operand, host_number, number_text
from fllmc.codegen.views import aligned, quoted, shape_text
from fllmc.ir.ops import Fill
from fllmc.ir.plan import Frame, Plan
from fllmc.ir.program import Function, Op
from fllmc.ir.types import Dim, Type
from fllmc.ir.walk import host_values, waits


class FunctionText:
    """Collects `bind` lines (views, made once) and `body` lines (the work of each call).

    Names: `a0, a1, ...` inputs, `r0, ...` result buffers of the caller, `v12` a value in the frame,
    `t3` another view of something, `s12` a Python float. `binders` names the generated function
    that binds each function of the program; `first_wait` is where the body first waits, or -1.
    """

    def __init__(self, plan: Plan, function: Function, binders: Mapping[str, str]):
        self.plan = plan
        self.program = plan.program
        self.sizes = plan.program.sizes
        self.function = function
        self.frame: Frame = plan.frame(function.name)
        self.host = host_values(function)
        self.waits = waits(function)
        self.bind: list[str] = []
        self.body: list[str] = []
        self.views: dict[str, str] = {}
        self.numbers: dict[int, Number] = {}
        self.binders = binders
        self.first_wait = -1
        self.sites = {(c.function, c.op): c.site for c in plan.collectives}

    def tensor(self, value: int) -> str:
        """The name of a value's tensor, bound on first use."""
        place = self.frame.places[value]
        if place.kind == "argument":
            return f"a{place.number}"
        if place.kind == "result":
            return f"r{place.number}"
        kind = self.function.types[value]
        if place.kind == "offload":
            return self.waiting(kind, place.number)
        return self.view(self.arena(kind, f"base + {place.number}"), f"v{value}")

    def arena(self, kind: Type, offset: str, shape: Sequence[int] | None = None) -> str:
        """The text of a view of the arena."""
        extents = self.sizes.local_shape(kind) if shape is None else shape
        return f"rt.view({quoted(kind.dtype)}, {offset}, {shape_text(extents)})"

    def waiting(self, kind: Type, offset: int) -> str:
        """The name of a view of host memory."""
        shape = shape_text(self.sizes.local_shape(kind))
        return self.view(f"rt.waiting({quoted(kind.dtype)}, {offset}, {shape})")

    def view(self, text: str, name: str = "") -> str:
        """The name bound to this text; the same text is bound once."""
        if text.isidentifier():
            return text
        if text not in self.views:
            chosen = name if name and name not in self.views.values() else f"t{len(self.views)}"
            self.views[text] = chosen
            self.bind.append(f"{chosen} = {text}")
        return self.views[text]

    def buffer_bytes(self, kind: Type) -> int:
        """Bytes from one buffer of this type to the next."""
        return aligned_bytes(self.sizes.local_bytes(kind))

    def number(self, value: int) -> str:
        """The text of a host scalar: a number or a name."""
        return number_text(self.numbers[value])

    def operand(self, value: int, result: Type) -> Operand:
        """An operand aligned to the dims of an elementwise result."""
        if value in self.host:
            return Operand(self.number(value), True)
        kind = self.function.types[value]
        text = aligned(self.tensor(value), kind.names, self.sizes.local_shape(kind), result.names)
        return Operand(self.view(text), False, len(kind.dims) == len(result.dims))

    def host_op(self, op: Op) -> None:
        """A scalar computed in Python; constants are folded."""
        (value,) = op.results
        if isinstance(op.attrs, Fill):
            self.numbers[value] = op.attrs.value
            return
        found = host_number(op.attrs, [self.numbers[v] for v in op.operands])
        if isinstance(found, str):
            self.body.append(f"s{value} = {found}")
            found = f"s{value}"
        self.numbers[value] = found

    def comment(self, op: Op) -> None:
        """One line that says what the following lines compute, and where it was written."""
        kinds = ", ".join(str(self.function.types[value]) for value in op.results)
        place = f"  {op.span.file}:{op.span.line}" if op.span.file else ""
        self.body.append(f"# {op.path or op.kind}: {op.kind} -> {kinds}{place}")

    def handle(self, at: int) -> str:
        """The name of what the op at that position has started."""
        return f"w{at}"

    def offset(self, op_at: int, number: int) -> str:
        """The arena offset of an op's scratch buffer."""
        return f"base + {self.frame.ops[op_at].scratch[number]}"


def position(text: FunctionText, dim: Dim) -> str:
    """The global position at which this rank's part of a dim begins, as bound text."""
    if not dim.axes:
        return "0"
    part = text.sizes.size(dim.name) // text.sizes.mesh.extent(dim.axes)
    return text.view(f"rt.coordinate({dim.axes!r}) * {part}")
