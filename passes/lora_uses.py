"""Where parameters are applied as linear maps, through scans and casts down to `dot` and `take`."""

from __future__ import annotations

import msgspec

from fllmc.ir.ops import Cast, Dot, Scan, Take
from fllmc.ir.program import Function, Op, Program
from fllmc.passes.naming import unique

Bound = dict[str, dict[int, str]]
"""By function name: the parameter that an input holds, or the layer of, by the input's number."""


class Arrow(msgspec.Struct, frozen=True):
    """A parameter as a map within one function: `batch` dims are in both sides of every product.

    `source` and `target` are in the parameter's order of dims, both without those of the stack.
    """

    batch: tuple[str, ...]
    source: tuple[str, ...]
    target: tuple[str, ...]


def own_bodies(program: Program) -> Program:
    """The program with a body of its own for every scan, so that an input holds one parameter."""
    taken = {function.name for function in program.functions}
    seen: set[str] = set()
    todo = list(program.entries)
    while todo:
        function = program.function(todo.pop(0))
        ops: list[Op] = []
        for op in function.ops:
            if isinstance(op.attrs, Scan) and op.attrs.function in seen:
                body = program.function(op.attrs.function)
                name = unique(body.name, taken)
                taken.add(name)
                program = program.with_functions(msgspec.structs.replace(body, name=name))
                op = msgspec.structs.replace(
                    op, attrs=msgspec.structs.replace(op.attrs, function=name)
                )
            ops.append(op)
            if isinstance(op.attrs, Scan):
                seen.add(op.attrs.function)
                todo.append(op.attrs.function)
        program = program.with_functions(msgspec.structs.replace(function, ops=tuple(ops)))
    return program


def bound_parameters(program: Program) -> Bound:
    """The parameters that inputs hold, from the entries inwards; each scan has its own body."""
    names = {parameter.name for parameter in program.parameters}
    found: Bound = {}
    todo: list[tuple[str, dict[int, str]]] = []
    for entry in program.entries:
        inputs = enumerate(program.function(entry).inputs)
        todo.append((entry, {i: g.name for i, g in inputs if g.name in names}))
    while todo:
        name, held = todo.pop(0)
        found[name] = held
        for op in program.function(name).ops:
            if isinstance(op.attrs, Scan):
                inner = {i: held[v] for i, v in enumerate(op.operands) if v in held}
                carried = range(op.attrs.carries)
                kept = {i: parameter for i, parameter in inner.items() if i not in carried}
                todo.append((op.attrs.function, kept))
    return found


def held_values(function: Function, held: dict[int, str]) -> dict[int, str]:
    """Values that are a parameter or a cast of one, by number."""
    found = dict(held)
    for op in function.ops:
        if isinstance(op.attrs, Cast) and op.operands[0] in found:
            found[op.results[0]] = found[op.operands[0]]
    return found


def weight_of(op: Op, held: dict[int, str]) -> int | None:
    """The position of the operand that is a parameter applied as a map by this op, if one is."""
    if isinstance(op.attrs, Take):
        return 0 if op.operands[0] in held else None
    if type(op.attrs) is Dot:
        return next((i for i in (1, 0) if op.operands[i] in held), None)
    return None


def used_as(op: Op, weight: int, function: Function) -> Arrow:
    """The map that this use makes of the parameter."""
    kind = function.types[op.operands[weight]]
    match op.attrs:
        case Take(dim=dim):
            inner, batch = (dim,), tuple[str, ...]()
        case Dot(contract=contract):
            other = function.types[op.operands[1 - weight]].names
            inner = tuple(name for name in kind.names if name in contract)
            batch = tuple(n for n in kind.names if n in other and n not in contract)
        case _:
            raise TypeError(op.kind)
    target = tuple(name for name in kind.names if name not in (*inner, *batch))
    return Arrow(batch, inner, target)


def arrows(program: Program) -> dict[str, Arrow]:
    """Every parameter that is applied as a map, as its first use makes it; no plain tensors."""
    plain = {parameter.name for parameter in program.parameters if parameter.plain}
    found: dict[str, Arrow] = {}
    for name, inputs in bound_parameters(program).items():
        function = program.function(name)
        held = held_values(function, inputs)
        for op in function.ops:
            weight = weight_of(op, held)
            if weight is not None and held[op.operands[weight]] not in plain:
                arrow = used_as(op, weight, function)
                if arrow.source and arrow.target:
                    found.setdefault(held[op.operands[weight]], arrow)
    return found
