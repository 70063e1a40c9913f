"""The program: flat SSA functions over named-dim tensors, the same Structs at all four levels.

    Program = level, dims, mesh, parameters, functions, entries
    Function = inputs, ops, results; values are numbers: the inputs first, then the ops' results
    Op = attributes (whose class is the op's kind), operands, results, path, span

Operands are numbers, never nested nodes, so a program of any length is linear to walk, hash and
encode.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from fllmc.ir.ops import AnyAttrs, Pipeline, Scan, Signature
from fllmc.ir.span import NOWHERE, Span
from fllmc.ir.types import Mesh, Sizes, Type

Level = Literal["model", "training", "sharded", "plan"]
LEVELS: tuple[Level, ...] = ("model", "training", "sharded", "plan")

Role = Literal["param", "state", "data", "host", "value"]
"""What an input is: a parameter, optimizer state, batch data, a host scalar, or a plain value."""


class Init(msgspec.Struct, frozen=True):
    """How a parameter begins: `normal` with standard deviation `std`, `zeros` or `ones`."""

    kind: Literal["normal", "zeros", "ones"]
    std: float = 0.0


class Parameter(msgspec.Struct, frozen=True):
    """One parameter tensor; those of a stack are one tensor whose first dim is the stack's.

    `name` is the path without positions, `body.attn.wq`; `stack` is the dim of the stack or empty,
    and `depth` the number of path parts before the position: layer 7 is `body.7.attn.wq`. In the
    program of a pipeline stage `layers` are the positions of those that it has; empty for all.

    In a stack of a pattern of `period` layers one tensor holds every `period`-th layer, and `name`
    is the path of the first of them: `body.2.attn.wq` with a period of 6 is of layers 2, 8, 14, ...

    `plain` is one that was declared as a tensor and not as a map. One of the two parts of a
    low-rank update names the parameter that it `updates`: their product, times `factor`, is added
    to that.

    One whose rows train in part is stored in parts: `rows` are the ends of the stretches of the
    whole that a part has, along its first dim. The part that bears the whole's name is frozen, as
    large as the whole, and zero in all other rows; the others name it as what they are `part_of`.

    One that is `stepped_by` a function is the state of a block: its gradient is what a step records
    for it, and the function gives what comes of both. It is in no norm and no optimizer.

    One that `holds` the codes or the scales of a parameter in few `bits` says how blocks lie: each
    of `block` positions, `along` a dim of that. See `ir/coded.py`.

    Of a map, `takes` is how many of its dims, behind the stack's, are those that it is applied to.
    It is stepped by the optimizer of its `group`; 0 is the run's own.
    """

    name: str
    type: Type
    init: Init
    trainable: bool = True
    stack: str = ""
    depth: int = 0
    decays: bool = True
    span: Span = NOWHERE
    layers: tuple[int, ...] = ()
    plain: bool = False
    updates: str = ""
    factor: float = 0.0
    part_of: str = ""
    rows: tuple[int, ...] = ()
    holds: Literal["", "codes", "scales"] = ""
    bits: int = 0
    block: int = 0
    along: str = ""
    takes: int = 0
    group: int = 0
    stepped_by: str = ""
    period: int = 0

    @property
    def stretches(self) -> tuple[tuple[int, int], ...]:
        """The rows of the whole that this part has, as (first, stop); none where it is no part."""
        return tuple(zip(self.rows[::2], self.rows[1::2], strict=True))

    @property
    def row_dim(self) -> str:
        """The dim along which rows count, the first that is no stack's; empty if there is none."""
        names = self.type.names[1 if self.stack else 0 :]
        return names[0] if names else ""

    def layer_name(self, layer: int) -> str:
        """The path of the part at that position of the tensor, as users and checkpoints name it."""
        whole = self.part_of or self.name
        if not self.stack:
            return whole
        parts = whole.split(".")
        number = self.layers[layer] if self.layers else layer
        if self.period:
            number = int(parts.pop(self.depth)) + number * self.period
        return ".".join((*parts[: self.depth], str(number), *parts[self.depth :]))

    @property
    def inner_name(self) -> str:
        """Its name in the body of its stack; the whole name outside of stacks."""
        return ".".join(self.name.split(".")[self.depth if self.stack else 0 :])

    @property
    def shown_name(self) -> str:
        """The path with `*` for the layer."""
        parts = self.name.split(".")
        inner = parts[self.depth + bool(self.period) :]
        return ".".join((*parts[: self.depth], "*", *inner)) if self.stack else self.name


class Input(msgspec.Struct, frozen=True):
    """An input of a function: a name and a role. Its type stands in the function's types."""

    name: str
    role: Role = "value"


class Op(msgspec.Struct, frozen=True):
    """One operation. `path` is its place in the model (`attn.attend`), for people and selectors."""

    attrs: AnyAttrs
    operands: tuple[int, ...]
    results: tuple[int, ...]
    path: str = ""
    span: Span = NOWHERE

    @property
    def kind(self) -> str:
        """The op's name."""
        return self.attrs.kind


class Function(msgspec.Struct, frozen=True):
    """A straight line of ops. Result i is called `outputs[i]`.

    In an entry, an output that bears the name of a param or state input replaces it.
    """

    name: str
    inputs: tuple[Input, ...]
    ops: tuple[Op, ...]
    results: tuple[int, ...]
    outputs: tuple[str, ...]
    types: tuple[Type, ...]
    span: Span = NOWHERE

    @property
    def signature(self) -> Signature:
        """The types of inputs and results."""
        inputs = self.types[: len(self.inputs)]
        return Signature(inputs, tuple(self.types[value] for value in self.results))

    def input_number(self, name: str) -> int:
        """The value number of the named input; KeyError if there is none."""
        for number, given in enumerate(self.inputs):
            if given.name == name:
                return number
        raise KeyError(name)


class DimSize(msgspec.Struct, frozen=True):
    """A declared dim and its global size."""

    name: str
    size: int


class Program(msgspec.Struct, frozen=True):
    """A whole program at one level. `entries` are the functions that a run calls."""

    level: Level
    dims: tuple[DimSize, ...]
    functions: tuple[Function, ...]
    entries: tuple[str, ...]
    parameters: tuple[Parameter, ...] = ()
    mesh: Mesh = Mesh()

    @property
    def sizes(self) -> Sizes:
        """Dim sizes with the mesh, for shapes and bytes."""
        return Sizes({dim.name: dim.size for dim in self.dims}, self.mesh)

    @property
    def signatures(self) -> Mapping[str, Signature]:
        """Every function's signature by name."""
        return {function.name: function.signature for function in self.functions}

    def function(self, name: str) -> Function:
        """The function of that name; KeyError if there is none."""
        for function in self.functions:
            if function.name == name:
                return function
        raise KeyError(name)

    def parameter(self, name: str) -> Parameter:
        """The parameter of that name; KeyError if there is none."""
        for parameter in self.parameters:
            if parameter.name == name:
                return parameter
        raise KeyError(name)

    def with_functions(self, *changed: Function, drop: tuple[str, ...] = ()) -> Program:
        """The program with functions replaced by name, new ones added at the end, some dropped."""
        new = {function.name: function for function in changed}
        kept = [new.pop(f.name, f) for f in self.functions if f.name not in drop]
        return msgspec.structs.replace(self, functions=(*kept, *new.values()))

    def with_dim(self, name: str, size: int) -> Program:
        """The program with one dim's size set or added."""
        dims = [DimSize(d.name, size) if d.name == name else d for d in self.dims]
        if all(dim.name != name for dim in dims):
            dims.append(DimSize(name, size))
        return msgspec.structs.replace(self, dims=tuple(dims))


def turns_dim(over: str, period: int) -> str:
    """The dim that counts the whole periods of a stack over a dim."""
    return f"{over}.{period}"


def layers_dim(stack: str) -> str:
    """The dim of the layers of a stack, from that over which it is run."""
    over, _, period = stack.partition(".")
    return over if period.isdecimal() else stack


def callees(function: Function) -> Iterator[str]:
    """Names of the functions that this one runs, in order, with repeats."""
    for op in function.ops:
        if isinstance(op.attrs, Pipeline):
            yield from (function for _, function in op.attrs.functions)
        elif isinstance(op.attrs, Scan):
            yield from op.attrs.functions
        elif name := getattr(op.attrs, "function", ""):
            yield name
