"""The verifier: what every program at every level must satisfy, checked after every pass.

Its main rule: no entry takes or returns a value that is still partial over a mesh axis. Together
with the ops' type rules (a partial value may only be used linearly, or resolved), this makes it
impossible to store or step a gradient that some ranks' share is missing from.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.legality import objection
from fllmc.ir.ops import COLLECTIVES, Bucketed, Env, Pipeline, Scan, TypeRuleError
from fllmc.ir.program import Function, Level, Op, Program, callees
from fllmc.ir.text_print import print_op
from fllmc.ir.types import DTYPE_BYTES, Dim, Sizes, Type, base_dim, deals_zigzag
from fllmc.ir.verify_buckets import bucket_faults
from fllmc.ir.verify_flight import beside_faults, flight_faults
from fllmc.ir.verify_turns import turn_faults


class Fault(NamedTuple):
    """One broken rule: the function and the position of the op in it, where it lies in one."""

    function: str
    op: int | None
    text: str


def verify(program: Program) -> None:
    """Raise InternalError, with the op printed, unless the program keeps every rule."""
    for fault in faults(program):
        raise InternalError(describe(program, fault))


def describe(program: Program, fault: Fault) -> str:
    """The fault in words, with its op in text form."""
    place = f"{program.level} program"
    if fault.function:
        place += f", function {fault.function}"
    if fault.op is None:
        return f"{place}: {fault.text}"
    function = program.function(fault.function)
    shown = print_op(function.ops[fault.op], function.types)
    return f"{place}, op {fault.op}: {fault.text}\n    {shown}"


def faults(program: Program) -> Iterator[Fault]:
    """The broken rules of the program as a whole; when it has none, those of its functions."""
    broken = list(_program_faults(program))
    yield from broken
    if broken:
        return
    known = _Known(program)
    for parameter in program.parameters:
        for text in (*known.type_faults(parameter.type), *_stored_faults(parameter.type)):
            yield Fault("", None, f"parameter {parameter.name}: {text}")
    for function in program.functions:
        yield from _function_faults(function, known)
    for name in program.entries:
        function = program.function(name)
        if _structure(function) is None:
            yield from _entry_faults(function)
    yield from _storage_faults(program)


class _Known:
    """What op rules look up, with the types found good so far."""

    def __init__(self, program: Program) -> None:
        self.level: Level = program.level
        self.program = program
        self.sizes: Sizes = program.sizes
        whole = {f.name: f.signature for f in program.functions if _structure(f) is None}
        self.env = Env(self.sizes, whole)
        self.good: set[Type] = set()

    def type_faults(self, kind: Type) -> list[str]:
        """What is wrong with a type in itself."""
        if kind in self.good:
            return []
        found = list(_type_faults(kind, self.sizes))
        if self.level in ("model", "training") and (kind.axes or kind.partial):
            found.append(f"{kind} is placed at level {self.level}")
        if not found:
            self.good.add(kind)
        return found


def _repeated(names: Sequence[str]) -> list[str]:
    return sorted({name for name in names if names.count(name) > 1}) if _has_repeat(names) else []


def _has_repeat(names: Sequence[str]) -> bool:
    return len(set(names)) != len(names)


def _program_faults(program: Program) -> Iterator[Fault]:
    groups = {
        "dim": [dim.name for dim in program.dims],
        "axis": [axis.name for axis in program.mesh.axes],
        "function": [function.name for function in program.functions],
        "entry": list(program.entries),
        "parameter": [parameter.name for parameter in program.parameters],
    }
    for what, names in groups.items():
        for name in _repeated(names):
            yield Fault("", None, f"{what} {name} stands twice")
    for named in (*program.dims, *program.mesh.axes):
        if named.size < 1:
            yield Fault("", None, f"{named.name} has size {named.size}")
    for name in program.entries:
        if name not in groups["function"]:
            yield Fault("", None, f"entry {name} is no function")
    yield from _call_faults(program)


def _call_faults(program: Program) -> Iterator[Fault]:
    """Missing callees, and functions that run themselves."""
    runs = {f.name: sorted(set(callees(f))) for f in program.functions}
    for name, called in runs.items():
        for other in called:
            if other not in runs:
                yield Fault(name, None, f"no function {other}")
    left = {name: {other for other in called if other in runs} for name, called in runs.items()}
    while ready := [name for name, called in left.items() if not called]:
        for name in ready:
            del left[name]
        for called in left.values():
            called.difference_update(ready)
    if left:
        yield Fault("", None, f"functions run themselves: {', '.join(sorted(left))}")


def _type_faults(kind: Type, sizes: Sizes) -> Iterator[str]:
    axes = [*kind.axes, *kind.partial]
    unknown = sorted({axis for axis in axes if not sizes.mesh.has(axis)})
    if kind.dtype not in DTYPE_BYTES:
        yield f"{kind}: no dtype {kind.dtype}"
    if kind.index and (kind.dtype != "i64" or not _declared(kind.index, sizes)):
        yield f"{kind}: indices of {kind.index} stored as {kind.dtype}"
    if _has_repeat(kind.names):
        yield f"{kind}: a dim stands twice"
    if _has_repeat(axes):
        yield f"{kind}: an axis stands twice"
    if kind.partial != tuple(sorted(kind.partial)):
        yield f"{kind}: open axes are not sorted"
    if kind.combine not in ("sum", "max") or (kind.combine == "max" and not kind.partial):
        yield f"{kind}: combined by {kind.combine}"
    if unknown:
        yield f"{kind}: no axis {', '.join(unknown)} in the mesh"
    for dim in kind.dims:
        if not _declared(dim.name, sizes):
            yield f"{kind}: dim {dim.name} is not declared"
        elif not unknown and sizes.size(dim.name) % sizes.mesh.extent(dim.axes):
            yield f"{kind}: {dim} does not divide {dim.name}={sizes.size(dim.name)}"
        elif not unknown and not _dealt_evenly(dim, sizes):
            yield f"{kind}: {dim} needs stretches of even length, {dim.name}={sizes.size(dim.name)}"


def _dealt_evenly(dim: Dim, sizes: Sizes) -> bool:
    """Whether what an axis deals in zig-zag is cut into two whole stretches for each rank."""
    rest = sizes.size(dim.name)
    for axis in dim.axes:
        rest //= sizes.mesh.extent((axis,))
        if deals_zigzag((axis,)) and rest % 2:
            return False
    return True


def _declared(name: str, sizes: Sizes) -> bool:
    return name in sizes.dims or base_dim(name) in sizes.dims


def _stored_faults(kind: Type) -> tuple[str, ...]:
    return (f"{kind} is still partial over {', '.join(kind.partial)}",) if kind.partial else ()


def _structure(function: Function) -> Fault | None:
    """What is wrong with the numbering of values, if anything."""
    count, name = len(function.inputs), function.name
    for position, op in enumerate(function.ops):
        if op.results != tuple(range(count, count + len(op.results))):
            return Fault(name, position, f"results are numbered {op.results}, next is {count}")
        if any(not 0 <= number < count for number in op.operands):
            return Fault(name, position, f"operands {op.operands} are not all made before")
        count += len(op.results)
    if len(function.types) != count:
        return Fault(name, None, f"{len(function.types)} types for {count} values")
    if any(not 0 <= number < count for number in function.results):
        return Fault(name, None, f"results {function.results} are not all made")
    if len(function.outputs) != len(function.results):
        text = f"{len(function.outputs)} output names for {len(function.results)} results"
        return Fault(name, None, text)
    return None


def _function_faults(function: Function, known: _Known) -> Iterator[Fault]:
    broken = _structure(function)
    if broken is not None:
        yield broken
        return
    for what, names in (
        ("input", [given.name for given in function.inputs]),
        ("output", list(function.outputs)),
    ):
        for name in _repeated(names):
            yield Fault(function.name, None, f"{what} {name} stands twice")
    for given, kind in zip(function.inputs, function.types, strict=False):
        for text in known.type_faults(kind):
            yield Fault(function.name, None, f"input {given.name}: {text}")
    for position, op in enumerate(function.ops):
        found = list(_op_faults(op, function.types, known))
        if isinstance(op.attrs, Pipeline) and not found:
            found = list(turn_faults(known.program, function, op))
        if isinstance(op.attrs, Scan) and not found:
            found = list(beside_faults(known.program, op))
        if isinstance(op.attrs, Bucketed) and not found:
            found = list(bucket_faults(known.program.function(op.attrs.function), op.attrs))
        for text in found:
            yield Fault(function.name, position, text)
    for at, text in flight_faults(function):
        yield Fault(function.name, at, text)


def _op_faults(op: Op, types: Sequence[Type], known: _Known) -> Iterator[str]:
    why = objection(known.level, op.attrs)
    if why is not None:
        yield f"{op.kind} does not belong to level {known.level}: {why}"
    if op.attrs.arity not in (-1, len(op.operands)):
        yield f"{op.kind} takes {op.attrs.arity} operands, not {len(op.operands)}"
        return
    operands = tuple(types[number] for number in op.operands)
    results = tuple(types[number] for number in op.results)
    try:
        wanted = op.attrs.infer(operands, known.env)
    except (TypeRuleError, LookupError, ValueError) as error:
        yield f"{op.kind} does not fit its operands: {error}"
        return
    if wanted != results:
        shown = ", ".join(map(str, wanted))
        yield f"results should be ({shown}), not ({', '.join(map(str, results))})"
    for kind in wanted:
        yield from known.type_faults(kind)
    for name in op.attrs.whole(operands):
        for kind in operands:
            if name in kind.names and kind.axes_of(name):
                yield f"{op.kind} needs {name} whole: {kind}"
    for kind in operands:
        if kind.index and kind.partial and not isinstance(op.attrs, COLLECTIVES):
            yield f"an index can't be a partial value: {kind}"


def _entry_faults(function: Function) -> Iterator[Fault]:
    """What a run hands in and keeps is resolved, and a replacement fits what it replaces."""
    taken = {g.name: kind for g, kind in zip(function.inputs, function.types, strict=False)}
    for name, kind in taken.items():
        for text in _stored_faults(kind):
            yield Fault(function.name, None, f"input {name}: {text}")
    for name, number in zip(function.outputs, function.results, strict=True):
        kind = function.types[number]
        for text in _stored_faults(kind):
            yield Fault(function.name, None, f"output {name}: {text}")
        if name in taken and taken[name] != kind:
            yield Fault(function.name, None, f"output {name} is {kind}, the input {taken[name]}")


def _storage_faults(program: Program) -> Iterator[Fault]:
    """A param or state has one type in all entries."""
    stored: dict[str, Type] = {}
    for function in program.functions:
        if function.name not in program.entries:
            continue
        for given, kind in zip(function.inputs, function.types, strict=False):
            if given.role in ("param", "state") and stored.setdefault(given.name, kind) != kind:
                text = f"{given.name} is {kind} here and {stored[given.name]} in another entry"
                yield Fault(function.name, None, text)
