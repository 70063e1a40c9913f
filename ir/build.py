"""Building functions op by op: every result type comes from the op's own rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import (
    Add,
    AnyAttrs,
    Cast,
    Div,
    Env,
    Exp,
    Fill,
    Mul,
    Neg,
    ReduceSum,
    Rename,
    Rsqrt,
    Signature,
    Sub,
    TypeRuleError,
)
from fllmc.ir.program import Function, Input, Op, Role
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.types import Sizes, Type


class Builder:
    """Collects the ops of one function. `path` and `span` mark the ops emitted from then on."""

    def __init__(self, name: str, sizes: Sizes, functions: Mapping[str, Signature] | None = None):
        self.name = name
        self.sizes = sizes
        self.functions: dict[str, Signature] = dict(functions or {})
        self.path = ""
        self.span: Span = NOWHERE
        self.types: list[Type] = []
        self.inputs: list[Input] = []
        self.ops: list[Op] = []
        self._input_values: list[int] = []

    def input(self, name: str, kind: Type, role: Role = "value") -> int:
        """Add an input; inputs added after ops are moved in front by `finish`."""
        self.types.append(kind)
        self.inputs.append(Input(name, role))
        self._input_values.append(len(self.types) - 1)
        return len(self.types) - 1

    def order_inputs(self, order: Sequence[int]) -> None:
        """Put the inputs into this order."""
        named = dict(zip(self._input_values, self.inputs, strict=True))
        self.inputs = [named[value] for value in order]
        self._input_values = list(order)

    def emit(self, attrs: AnyAttrs, *operands: int) -> tuple[int, ...]:
        """Add an op and return its result values."""
        kinds = [self.types[value] for value in operands]
        try:
            results = attrs.infer(kinds, Env(self.sizes, self.functions))
        except TypeRuleError as error:
            shown = ", ".join(map(str, kinds))
            raise InternalError(
                f"{self.name}: {attrs.kind}({shown}) at {self.path}: {error}"
            ) from error
        numbers = tuple(range(len(self.types), len(self.types) + len(results)))
        self.types.extend(results)
        self.ops.append(Op(attrs, operands, numbers, self.path, self.span))
        return numbers

    def one(self, attrs: AnyAttrs, *operands: int) -> int:
        """Add an op with a single result."""
        (value,) = self.emit(attrs, *operands)
        return value

    def constant(self, value: float) -> int:
        """A host scalar."""
        return self.one(Fill(float(value)))

    def zeros(self, kind: Type) -> int:
        """Zeros of a type, open where the type is."""
        return self.one(Fill(0.0, kind.dtype, kind.dims, kind.partial))

    def cast(self, value: int, dtype: str) -> int:
        """The value in that dtype; itself when it has it already, or holds indices."""
        kind = self.types[value]
        return value if kind.dtype == dtype or kind.index else self.one(Cast(dtype), value)

    def rename(self, value: int, pairs: Mapping[str, str]) -> int:
        """The value with dims renamed; itself when there is nothing to rename."""
        have = self.types[value].names
        todo = tuple((old, new) for old, new in pairs.items() if old in have and old != new)
        return self.one(Rename(todo), value) if todo else value

    def add(self, a: int, b: int) -> int:
        """a + b."""
        return self.one(Add(), a, b)

    def sub(self, a: int, b: int) -> int:
        """a - b."""
        return self.one(Sub(), a, b)

    def mul(self, a: int, b: int) -> int:
        """a * b."""
        return self.one(Mul(), a, b)

    def div(self, a: int, b: int) -> int:
        """a / b."""
        return self.one(Div(), a, b)

    def neg(self, a: int) -> int:
        """-a."""
        return self.one(Neg(), a)

    def exp(self, a: int) -> int:
        """exp(a)."""
        return self.one(Exp(), a)

    def rsqrt(self, a: int) -> int:
        """1 / sqrt(a)."""
        return self.one(Rsqrt(), a)

    def sum(self, a: int, dims: Sequence[str]) -> int:
        """The sum over dims; a itself when there are none."""
        return self.one(ReduceSum(tuple(dims)), a) if dims else a

    def copy(self, function: Function, operands: Sequence[int], scope: str = "") -> tuple[int, ...]:
        """Add all ops of a function with its inputs replaced by operands; returns its results.

        Paths are put under `scope`, so an inlined `norm` called as `attn_norm` reads `attn_norm.…`.
        """
        mapping = dict(enumerate(operands))
        outer_path, outer_span = self.path, self.span
        for op in function.ops:
            self.path = ".".join(part for part in (scope, op.path) if part)
            self.span = op.span if op.span != NOWHERE else outer_span
            results = self.emit(op.attrs, *(mapping[value] for value in op.operands))
            mapping.update(zip(op.results, results, strict=True))
        self.path, self.span = outer_path, outer_span
        return tuple(mapping[value] for value in function.results)

    def finish(
        self, results: Sequence[int], outputs: Sequence[str], span: Span = NOWHERE
    ) -> Function:
        """The function, with values numbered inputs first."""
        order = [*self._input_values, *(value for op in self.ops for value in op.results)]
        number = {value: position for position, value in enumerate(order)}
        ops = tuple(
            msgspec.structs.replace(
                op,
                operands=tuple(number[value] for value in op.operands),
                results=tuple(number[value] for value in op.results),
            )
            for op in self.ops
        )
        return Function(
            self.name,
            tuple(self.inputs),
            ops,
            tuple(number[value] for value in results),
            tuple(outputs),
            tuple(self.types[value] for value in order),
            span,
        )
