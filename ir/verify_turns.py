"""The rules of a pipeline op: every value has a giver, and no turn is lost or done twice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from fllmc.ir.ops import Pipeline
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Dim, Type


def turn_faults(program: Program, function: Function, op: Op) -> Iterator[str]:
    """What is wrong with a pipeline op, beside its own type rule."""
    assert isinstance(op.attrs, Pipeline)
    attrs = op.attrs
    held = {
        name: _of_one(attrs, number, function.types[value])
        for number, (name, value) in enumerate(zip(attrs.names, op.operands, strict=True))
    }
    functions = {key: program.function(name) for key, name in attrs.functions}
    for key, inner in functions.items():
        yield from _type_faults(attrs, key, inner, held)
    yield from _missing(program, attrs, functions)
    yield from _order_faults(attrs, functions)


def _of_one(attrs: Pipeline, number: int, kind: Type) -> Type:
    """The type of an operand as a micro-batch sees it."""
    sliced = attrs.carries <= number < attrs.carries + attrs.slices
    return kind.placed(kind.dims[1:]) if sliced else kind


def _type_faults(
    attrs: Pipeline, key: str, inner: Function, held: Mapping[str, Type]
) -> Iterator[str]:
    """Operands that a function takes or gives in another type."""
    named = [(given.name, kind) for given, kind in zip(inner.inputs, inner.types, strict=False)]
    named += list(zip(inner.outputs, inner.signature.results, strict=True))
    for name, kind in named:
        if name not in held:
            continue
        whole = kind
        if kind.names and kind.names[0] in attrs.parts:
            first = attrs.wholes[attrs.parts.index(kind.names[0])]
            whole = kind.placed((Dim(first, kind.dims[0].axes), *kind.dims[1:]))
        if whole != held[name]:
            yield f"{key} has {name} as {kind}, the operand is {held[name]}"
    for name in inner.outputs:
        if name in attrs.names[attrs.carries :]:
            yield f"{key} gives {name}, which is no carry"


def _missing(program: Program, attrs: Pipeline, functions: Mapping[str, Function]) -> Iterator[str]:
    """Turns that are not there exactly once, and stages that live elsewhere."""
    micros = program.sizes.size(attrs.over) if attrs.over else 1
    wanted = {f"{key}.{micro}" for key in functions for micro in range(micros)}
    for action in sorted(wanted - set(attrs.actions)):
        yield f"turn {action} is missing"
    for action in sorted(set(attrs.actions) - wanted):
        yield f"turn {action} has no function or no micro-batch"
    if len(set(attrs.actions)) != len(attrs.actions):
        yield "a turn stands twice"
    for key in functions:
        if attrs.homes[int(key[1:])] != attrs.rank:
            yield f"{key} is run on rank {attrs.rank}, the stage lives on another"


def _order_faults(attrs: Pipeline, functions: Mapping[str, Function]) -> Iterator[str]:
    """Values that a turn takes before anything has given them."""
    known = {*attrs.names}
    takes = {port for port, _ in attrs.takes}
    there: set[tuple[str, str]] = set()
    for action in attrs.actions:
        key, _, micro = action.partition(".")
        inner = functions.get(key)
        if inner is None:
            continue
        for given in inner.inputs:
            port = f"{given.name}.{key[1:]}"
            if given.name not in known and port not in takes and (port, micro) not in there:
                yield f"{action} takes {given.name} before a turn gives it"
        there.update((f"{name}.{key[1:]}", micro) for name in inner.outputs)
