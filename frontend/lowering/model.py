"""Typed blocks to functions: one for each used block, and the entry `model`.

A block's function takes its tensor inputs, then all parameters under it by relative path, in the
order of declaration. A stacked block with several inputs has a second form, `NAME.stacked`, that
takes its first input, the parameters, then the other inputs, as `scan` hands them out. Where a
block has penalties, or holds one that has, its function also gives their sum, and the second form
takes the sum so far behind its first input: a stack carries it from layer to layer.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.lowering.composites import composite
from fllmc.frontend.lowering.emit import Emitter, arranged
from fllmc.frontend.semantics.penalties import penalty_dims
from fllmc.frontend.semantics.sizes import SizeTable
from fllmc.frontend.semantics.states import SAMPLES
from fllmc.frontend.semantics.typed import (
    Block,
    Composite,
    Key,
    Kind,
    Local,
    Nested,
    Param,
    Plain,
    Typed,
    Update,
    Use,
)
from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Call, Fill, Record, Scan, Signature
from fllmc.ir.ops.structure import stack_of
from fllmc.ir.program import Function, Init, Parameter, Role
from fllmc.ir.settings import Precision
from fllmc.ir.types import Sizes, Type, indices, tensor

LOOKUP_STD = 0.02
CARRIED = "penalty.sum"
LOSS = "loss"
RESERVED = (LOSS, "model", "optimizer", "optimizer.no_decay", "optimizer.states", "rate")


class Model(Struct, frozen=True):
    """The functions of a model, callees first and `model` last, and its parameters."""

    functions: tuple[Function, ...]
    parameters: tuple[Parameter, ...]


Chosen = tuple[Key, Mapping[str, float]]
"""A loss and its numbers."""


def lower_model(
    key: Key,
    blocks: Mapping[Key, Block],
    sizes: Sizes,
    table: SizeTable,
    precision: Precision,
    loss: Chosen | None = None,
) -> Model:
    """The model as functions, and its loss. All dims that it uses must have sizes.

    A loss is computed in the dtype of losses.
    """
    lowering = _Lowering(blocks, sizes, table, precision)
    entry = lowering.function(key, "model")
    if loss is None:
        return Model((*lowering.functions.values(), entry), lowering.parameters(key))
    lowering.precision = structs.replace(precision, compute=lowering.wide)
    last = lowering.function(loss[0], LOSS, numbers=loss[1])
    return Model((*lowering.functions.values(), entry, last), lowering.parameters(key))


class _Lowering:
    """Lowers blocks once each and names their functions."""

    def __init__(
        self, blocks: Mapping[Key, Block], sizes: Sizes, table: SizeTable, precision: Precision
    ) -> None:
        self.blocks = blocks
        self.sizes = sizes
        self.table = table
        self.precision = precision
        self.functions: dict[str, Function] = {}
        self.names: dict[object, str] = {}
        self.known: dict[Key, tuple[Parameter, ...]] = {}

    def name(self, what: object, wish: str) -> tuple[str, bool]:
        """The function name of a thing, and whether it is new.

        A taken name gets a number behind it; no composite takes the name of a block.
        """
        if what in self.names:
            return self.names[what], False
        taken = {*self.names.values(), *RESERVED}
        if isinstance(what, tuple):
            taken.update(key.name for key in self.blocks)
        count, name = 1, wish
        while name in taken:
            count += 1
            name = f"{wish}.{count}"
        self.names[what] = name
        return name, True

    # Parameters.

    def parameters(self, key: Key) -> tuple[Parameter, ...]:
        """All parameters under a block by relative path, in order of declaration."""
        if key not in self.known:
            found: list[Parameter] = []
            for member in self.blocks[key].members:
                if isinstance(member, Param):
                    found.append(self.own(self.blocks[key], member))
                else:
                    found.extend(self.under(member))
            self.known[key] = tuple(found)
        return self.known[key]

    def own(self, block: Block, param: Param) -> Parameter:
        """A block's own parameter, or its state, which is stored in the dtype of losses."""
        kind = tensor(self.wide if param.state else self.precision.params, *param.stored)
        step = self.update(block, param) if param.state else ""
        return Parameter(
            param.name,
            kind,
            self.init(param),
            span=param.span,
            plain=not param.arrow,
            takes=len(param.source),
            stepped_by=step,
        )

    def update(self, block: Block, state: Param) -> str:
        """The name of the function (state, total) -> state after a step."""
        name, new = self.name((block.signature.key, state.name), f"{state.name}.update")
        if new:
            found = next(each for each in block.updates if each.state == state.name)
            self.functions[name] = updating(found, name, tensor(self.wide, *state.target), self)
        return name

    def under(self, nested: Nested) -> tuple[Parameter, ...]:
        """The parameters of a sub-block, or those of a stack as one tensor for all layers."""
        left = (p for layer in self.left(nested) for p in self.under(layer))
        return (*self.repeated(nested), *left)

    def repeated(self, nested: Nested) -> tuple[Parameter, ...]:
        """The parameters of a sub-block, or those of what a stack runs again and again."""
        found: list[Parameter] = []
        for parameter in self.parameters(nested.block) if self.runs(nested) else ():
            name = f"{nested.name}.{parameter.name}"
            changed = structs.replace(parameter, name=name)
            if nested.over:
                kind = stack_of(parameter.type, nested.turns)
                changed = structs.replace(
                    changed, type=kind, stack=nested.turns, depth=1, period=nested.period
                )
            elif parameter.stack:
                changed = structs.replace(changed, depth=parameter.depth + 1)
            found.append(changed)
        return tuple(found)

    def runs(self, nested: Nested) -> bool:
        """Whether its block is run as a whole; a pattern that is longer than its stack is not."""
        return not nested.period or nested.turns in self.sizes.dims

    def left(self, nested: Nested) -> tuple[Nested, ...]:
        """The layers of a stack behind its last whole period, each as a sub of its own."""
        if not nested.period:
            return ()
        count, layers = self.sizes.size(nested.over), self.blocks[nested.block].nested
        return tuple(
            Nested(
                f"{nested.name}.{number}", nested.span, layers[str(number % nested.period)].block
            )
            for number in range(count - count % nested.period, count)
        )

    def init(self, param: Param) -> Init:
        """How a parameter begins: as stated, else normal by fan-in, or as a lookup table."""
        match param.init:
            case ast.Call(function=ast.Ref(name="zeros")):
                return Init("zeros")
            case ast.Call(function=ast.Ref(name="ones")):
                return Init("ones")
            case ast.Call(arguments=(ast.Argument(value=value),)):
                std = self.table.number(value, f"the start of `{param.name}`")
                return Init("normal", float(std or 0.0))
            case _ if param.lookup:
                return Init("normal", LOOKUP_STD)
            case _:
                fan_in = math.prod(self.sizes.size(name) for name in param.source)
                return Init("normal", 1 / math.sqrt(fan_in))

    # Functions.

    def block(self, key: Key, stacked: bool = False) -> str:
        """The name of a block's function, lowered on first use."""
        inputs = self.blocks[key].signature.inputs
        several = stacked and (len(inputs) > 1 or self.penalty(key) is not None)
        wish = "_".join(re.findall(r"[A-Za-z_]\w*", key.name)) + ".stacked" * several
        name, new = self.name((key, "stacked") if several else key, wish)
        if new:
            self.functions[name] = self.function(key, name, several)
        return name

    def function(
        self,
        key: Key,
        name: str,
        stacked: bool = False,
        numbers: Mapping[str, float] | None = None,
    ) -> Function:
        """A block as a function; the entry takes its parameters first, as a model does."""
        block = self.blocks[key]
        entry = name == "model"
        builder = Builder(name, self.sizes, self.signatures())
        values: dict[str, int] = {}
        first = 0 if entry else 1 if stacked else len(block.signature.inputs)
        for given in block.signature.inputs[:first]:
            values[given.name] = builder.input(given.name, self.type(given.kind))
        kind = self.penalty(key)
        carried = [builder.input(CARRIED, kind)] if kind and stacked else []
        for parameter in self.parameters(key):
            values[parameter.name] = builder.input(parameter.name, parameter.type, "param")
        role: Role = "data" if entry else "value"
        for given in block.signature.inputs[first:]:
            values[given.name] = builder.input(given.name, self.type(given.kind), role)
        for number, value in (numbers or {}).items():
            values[number] = builder.constant(value)
        within = _BlockEmitter(self, block, builder, values)
        emitter = within.emitter()
        recorded = {update.total: update.state for update in block.updates}
        for step in block.steps:
            values[step.name] = emitter.expr(step.value)
            within.penalties += [values[step.name]] if step.penalty else []
            if step.name in recorded:
                within.record(recorded[step.name], values[step.name])
        result = emitter.expr(block.returned)
        builder.span = block.returned.span
        wanted = self.type(block.signature.result)
        result = arranged(builder, builder.cast(result, wanted.dtype), wanted.names)
        if kind is None:
            return builder.finish((result,), ("out",), block.signature.span)
        total = summed(builder, [*carried, *within.penalties], kind)
        return builder.finish((result, total), ("out", "penalty"), block.signature.span)

    def penalty(self, key: Key) -> Type | None:
        """The type of the sum of a block's penalties, in the dtype of losses; None without any."""
        dims = penalty_dims(key, self.blocks)
        return None if dims is None else tensor(self.wide, *dims)

    @property
    def wide(self) -> str:
        """The dtype of losses and states."""
        return "f64" if self.precision.compute == "f64" else "f32"

    def type(self, kind: Kind) -> Type:
        """The type of a tensor at a block's border: indices, or numbers in the compute dtype."""
        if kind.form == "index":
            return indices(kind.index, *kind.dims)
        return tensor(self.precision.compute, *kind.dims)

    def signatures(self) -> dict[str, Signature]:
        """Signatures of all functions so far."""
        return {name: function.signature for name, function in self.functions.items()}

    def composite(self, op: Composite, builder: Builder, args: tuple[int, ...]) -> int:
        """A call of a composite on these values."""
        kinds = tuple(builder.types[arg] for arg in args)
        name, new = self.name((op, kinds), op.name)
        if new:
            made = composite(op.name, name, kinds, op.over, dict(op.options), self.sizes)
            self.functions[name] = made
        builder.functions[name] = self.functions[name].signature
        return builder.one(Call(name), *args)


class _BlockEmitter:
    """How the equations of one block reach its nested blocks."""

    def __init__(
        self, lowering: _Lowering, block: Block, builder: Builder, values: dict[str, int]
    ) -> None:
        self.lowering = lowering
        self.block = block
        self.builder = builder
        self.values = values
        self.penalties: list[int] = []

    def emitter(self) -> Emitter:
        """The emitter of the block's equations."""
        lowering = self.lowering
        return Emitter(
            self.builder,
            self.values,
            self.block.params,
            lowering.precision.compute,
            lowering.composite,
            self.use,
        )

    def use(self, op: Use, builder: Builder, args: tuple[int, ...]) -> int:
        """A call of a sub-block, or a scan over a stack and what its last period leaves."""
        lowering, nested = self.lowering, self.block.nested[op.name]
        value = args[0] if args else -1
        if lowering.runs(nested):
            value = self.run(nested, builder, args)
        for layer in lowering.left(nested):
            value = self.run(layer, builder, (value, *args[1:]))
        return value

    def run(self, nested: Nested, builder: Builder, args: tuple[int, ...]) -> int:
        """A call of a block, or a scan over it."""
        lowering = self.lowering
        name = lowering.block(nested.block, bool(nested.over))
        builder.functions[name] = lowering.functions[name].signature
        builder.path = nested.name
        wanted = lowering.blocks[nested.block].signature.inputs
        fitted = tuple(
            self.fitted(arg, lowering.type(given.kind))
            for arg, given in zip(args, wanted, strict=True)
        )
        params = tuple(self.values[p.name] for p in lowering.repeated(nested))
        kind = lowering.penalty(nested.block)
        if nested.over:
            begin = () if kind is None else (builder.one(Fill(0.0, kind.dtype, kind.dims)),)
            scan = Scan(name, nested.turns, 1 + len(begin), len(params))
            result, *more = builder.emit(scan, fitted[0], *begin, *params, *fitted[1:])
        else:
            result, *more = builder.emit(Call(name), *fitted, *params)
        self.penalties += more
        return result

    def record(self, state: str, total: int) -> None:
        """Note a total for the update of a state: a zero among the penalties, with a gradient."""
        b, param = self.builder, self.block.params[state]
        b.path = state
        value = b.sum(b.cast(total, self.lowering.wide), (SAMPLES,))
        self.penalties.append(b.one(Record(), self.values[state], arranged(b, value, param.stored)))

    def fitted(self, value: int, wanted: Type) -> int:
        """The value as a block takes it: its dims in order, numbers in the compute dtype."""
        value = self.builder.cast(value, wanted.dtype)
        return arranged(self.builder, value, wanted.names)


def updating(update: Update, name: str, kind: Type, lowering: _Lowering) -> Function:
    """The equation of an update, composites written out."""
    builder = Builder(name, lowering.sizes)
    values = {update.state: builder.input(update.state, kind)}
    values[update.total] = builder.input(update.total, kind)

    def composed(op: Composite, b: Builder, args: tuple[int, ...]) -> int:
        kinds = tuple(b.types[arg] for arg in args)
        made = composite(op.name, op.name, kinds, op.over, dict(op.options), lowering.sizes)
        (result,) = b.copy(made, args)
        return result

    def unused(op: Use, b: Builder, args: tuple[int, ...]) -> int:
        raise InternalError(f"{op.name} in an update")

    emitter = Emitter(builder, values, {}, lowering.wide, composed, unused)
    result = emitter.expr(of_state(update.value))
    return builder.finish((arranged(builder, result, kind.names),), ("out",), update.value.span)


def of_state(value: Typed) -> Typed:
    """An update's expression, in which the state is a value like others."""
    op = Local(value.op.param) if isinstance(value.op, Plain) else value.op
    return structs.replace(value, op=op, args=tuple(map(of_state, value.args)))


def summed(b: Builder, values: list[int], kind: Type) -> int:
    """The sum of numbers over some dims of a type, in this type."""
    b.path = "penalty"
    wide = [b.cast(value, kind.dtype) for value in values]
    total = wide[0]
    for value in wide[1:]:
        total = b.add(total, value)
    return arranged(b, total, kind.names)
