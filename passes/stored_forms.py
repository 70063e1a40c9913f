"""Parameters stored in another form than the model speaks of: their value is made at each use.

    func f(%0 w: f32[embed, ffn] param) { %1 = cast{dtype=bf16}(%0); ... }
    ->
    func f(%0 w: bf16[embed, ffn] param) { ... }

A form names the parameters that are stored instead, and how the value follows from theirs. It is
made in the function that uses it, so of a stack one layer at a time, and once in each function.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import Cast, Scan, Signature, Take
from fllmc.ir.program import Function, Op, Parameter, Program
from fllmc.passes.inline import callees_first
from fllmc.passes.lora_uses import bound_parameters, own_bodies


class Form(msgspec.Struct, frozen=True):
    """How `base` is stored: as `parts`, which are sliced and handed on as it is."""

    base: Parameter
    parts: tuple[Parameter, ...]

    @abstractmethod
    def value(self, b: Builder, parts: Sequence[int], dtype: str) -> int:
        """The value of the base in a dtype, from those of its parts."""

    def taken(
        self, b: Builder, parts: Sequence[int], take: Take, index: int, dtype: str
    ) -> int | None:
        """What is looked up in the base, if that is had without the whole of it."""
        return None


def restored(program: Program, forms: Mapping[str, Form]) -> Program:
    """The program with each named parameter stored in its form."""
    if not forms:
        return program
    program = own_bodies(program)
    rewriter = Rewriter(program, forms)
    functions = [
        rewriter.function(function)
        for function in callees_first(program)
        if function.name in rewriter.bound
    ]
    parameters = tuple(
        part
        for p in program.parameters
        for part in (forms[p.name].parts if p.name in forms else [p])
    )
    program = msgspec.structs.replace(program, parameters=parameters)
    return program.with_functions(*functions)


class Rewriter:
    """Rewrites functions, callees before callers."""

    def __init__(self, program: Program, forms: Mapping[str, Form]) -> None:
        self.program = program
        self.forms = forms
        self.bound = {
            name: {number: forms[held] for number, held in inputs.items() if held in forms}
            for name, inputs in bound_parameters(program).items()
        }
        self.signatures: dict[str, Signature] = dict(program.signatures)

    def function(self, function: Function) -> Function:
        """The function on parts."""
        held = self.bound[function.name]
        b = Builder(function.name, self.program.sizes, self.signatures)
        values = Values(b, held)
        for number, given in enumerate(function.inputs):
            kind = function.types[number]
            if number not in held:
                values.mapping[number] = b.input(given.name, kind, given.role)
                continue
            form = held[number]
            gone = len(form.base.type.dims) - len(kind.dims)
            values.parts[number] = tuple(
                b.input(
                    given.name + part.name.removeprefix(form.base.name),
                    part.type.placed(part.type.dims[gone:]),
                    "param",
                )
                for part in form.parts
            )
        for op in function.ops:
            if isinstance(op.attrs, Cast) and values.has(op.operands[0]):
                values.cast(op.results[0], op.operands[0], op.attrs.dtype)
                continue
            b.path, b.span = op.path, op.span
            values.mapping.update(zip(op.results, self.op(b, op, values), strict=True))
        results = [values.of(value, function.types[value].dtype) for value in function.results]
        new = b.finish(results, function.outputs, function.span)
        self.signatures[new.name] = new.signature
        return new

    def op(self, b: Builder, op: Op, values: Values) -> tuple[int, ...]:
        """The op on values, or a scan on parts."""
        if isinstance(op.attrs, Scan):
            return self.scan(b, op, op.attrs, values)
        if isinstance(op.attrs, Take) and values.has(op.operands[0]):
            found = values.taken(op.attrs, *op.operands)
            if found is not None:
                return (found,)
        return b.emit(op.attrs, *(values.of(value) for value in op.operands))

    def scan(self, b: Builder, op: Op, attrs: Scan, values: Values) -> tuple[int, ...]:
        """The scan, its body given parts where it was given what they stand for."""
        stop = attrs.carries + attrs.slices
        given: list[int] = [values.of(value) for value in op.operands[: attrs.carries]]
        slices = 0
        for number, value in enumerate(op.operands[attrs.carries :], attrs.carries):
            found = values.parts.get(value, ()) or (values.of(value),)
            given += found
            slices += len(found) if number < stop else 0
        return b.emit(msgspec.structs.replace(attrs, slices=slices), *given)


class Values:
    """New numbers of a function's values; of those stored in a form, made when first asked for."""

    def __init__(self, b: Builder, held: Mapping[int, Form]) -> None:
        self.b = b
        self.held = held
        self.mapping: dict[int, int] = {}
        self.parts: dict[int, tuple[int, ...]] = {}
        self._casts: dict[int, tuple[int, str]] = {}
        self._made: dict[tuple[int, str], int] = {}

    def has(self, value: int) -> bool:
        """Whether the value is stored in a form, or a cast of one that is."""
        return value in self.parts or value in self._casts

    def cast(self, value: int, source: int, dtype: str) -> None:
        """Let a value be another one that is stored in a form, in a dtype of its own."""
        self._casts[value] = (self.origin(source)[0], dtype)

    def origin(self, value: int) -> tuple[int, str]:
        """The value as it is stored, and the dtype in which it is wanted."""
        return self._casts.get(value) or (value, self.held[value].base.type.dtype)

    def taken(self, take: Take, table: int, index: int) -> int | None:
        """What is looked up in a value stored in a form, if that is had without all of it."""
        stored, dtype = self.origin(table)
        form, parts = self.held[stored], self.parts[stored]
        return form.taken(self.b, parts, take, self.mapping[index], dtype)

    def of(self, value: int, dtype: str = "") -> int:
        """The value, in the model's dtype if no other is named."""
        if not self.has(value):
            return self.mapping[value]
        stored, wanted = self.origin(value)
        key = (stored, dtype or wanted)
        if key not in self._made:
            self._made[key] = self.held[stored].value(self.b, self.parts[stored], key[1])
        return self._made[key]
