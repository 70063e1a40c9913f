"""Stages that differ in nothing but when they take their turns and which layers they have.

The passes that follow are run for one of them. So the time to compile grows with the number of
different stages, not with the length of the pipeline.
"""

from __future__ import annotations

import msgspec
from msgspec import structs

from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Function, Op, Program


def outline(program: Program) -> bytes:
    """What stages that can share the work have in common."""
    functions = tuple(
        structs.replace(f, ops=tuple(map(_bare, f.ops))) if f.name in program.entries else f
        for f in program.functions
    )
    parameters = tuple(structs.replace(p, layers=()) for p in program.parameters)
    bare = structs.replace(program, functions=functions, parameters=parameters)
    return msgspec.msgpack.encode(bare)


def _bare(op: Op) -> Op:
    """The op without its turns; stages are numbered by their order on the rank."""
    attrs = op.attrs
    if not isinstance(attrs, Pipeline):
        return op
    stages = sorted({int(key[1:]) for key, _ in attrs.functions})
    functions = tuple(
        (f"{key[0]}{stages.index(int(key[1:]))}", name) for key, name in attrs.functions
    )
    bare = Pipeline(
        attrs.axis,
        attrs.over,
        attrs.carries,
        attrs.slices,
        attrs.names,
        (),
        0,
        functions,
        parts=attrs.parts,
        wholes=attrs.wholes,
        starts=attrs.starts,
    )
    return structs.replace(op, attrs=bare)


def like(finished: Program, own: Program) -> Program:
    """A finished program of another stage with the turns and the layers of `own`."""
    layers = {parameter.name: parameter.layers for parameter in own.parameters}
    entries = [_with_turns(finished.function(name), own.function(name)) for name in own.entries]
    parameters = tuple(structs.replace(p, layers=layers[p.name]) for p in finished.parameters)
    return structs.replace(finished, parameters=parameters).with_functions(*entries)


def _with_turns(finished: Function, own: Function) -> Function:
    """An entry with the turns of another."""
    turns = iter([op.attrs for op in own.ops if isinstance(op.attrs, Pipeline)])
    ops = tuple(
        structs.replace(op, attrs=next(turns)) if isinstance(op.attrs, Pipeline) else op
        for op in finished.ops
    )
    return structs.replace(finished, ops=ops)
