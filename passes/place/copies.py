"""Compute copies: parameters that are gathered once a step are cast before they are gathered.

    func train(%0 w: f32[layers, embed], ...) { scan{function=layer}(x, %0) }       layer casts %0
    ->
    func train(%0 w: f32[layers, embed], ...) { %5: bf16 = cast(%0); scan{function=layer}(x, %5) }

So half the bytes move and a whole copy takes half the memory. A parameter that some op uses as it
is stored is left as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import Cast, Scan, Signature
from fllmc.ir.program import Function, Program
from fllmc.passes.inline import callees_first
from fllmc.passes.place.directives import Layout

Casts = dict[str, dict[int, str]]
"""By function and number of an input: the one dtype to which all its uses cast it."""


def with_copies(program: Program, layout: Layout) -> Program:
    """The program whose entries cast such parameters themselves."""
    if not any(layout.gathered_once(parameter.name) for parameter in program.parameters):
        return program
    wanted = wanted_casts(program, layout)
    signatures: dict[str, Signature] = dict(program.signatures)
    done: list[Function] = []
    for function in callees_first(program):
        new = rewritten(function, program, wanted, signatures)
        signatures[new.name] = new.signature
        done.append(new)
    return program.with_functions(*done)


def wanted_casts(program: Program, layout: Layout) -> Casts:
    """Inputs of the functions that entries scan over which are such parameters, always cast."""
    only = only_cast(program)
    found: Casts = {}
    for name in program.entries:
        function = program.function(name)
        params = {
            number: given.name
            for number, given in enumerate(function.inputs)
            if given.role == "param" and layout.gathered_once(given.name)
        }
        follow(program, function, params, only, found)
    return found


def follow(
    program: Program,
    function: Function,
    params: Mapping[int, str],
    only: Mapping[str, Mapping[int, str]],
    found: Casts,
) -> None:
    """Note the inputs of scan bodies that take these values, if their uses all cast them."""
    for op in function.ops:
        if isinstance(op.attrs, Scan):
            name = op.attrs.function
            taken = {
                number: params[value]
                for number, value in enumerate(op.operands)
                if value in params and number in only[name]
            }
            found.setdefault(name, {}).update({n: only[name][n] for n in taken})
            follow(program, program.function(name), taken, only, found)


def only_cast(program: Program) -> dict[str, dict[int, str]]:
    """For every function, its inputs that are cast to one dtype wherever they are used."""
    found: dict[str, dict[int, str]] = {}
    for function in callees_first(program):
        uses: dict[int, set[str]] = {number: set() for number in range(len(function.inputs))}
        for op in function.ops:
            for number, value in enumerate(op.operands):
                if value in uses:
                    uses[value].add(use(found, op.attrs, number))
        for value in function.results:
            if value in uses:
                uses[value].add("")
        found[function.name] = {
            number: dtypes.pop()
            for number, dtypes in uses.items()
            if len(dtypes) == 1 and "" not in dtypes
        }
    return found


def use(known: Mapping[str, Mapping[int, str]], attrs: object, number: int) -> str:
    """The dtype to which an op casts its operand, or nothing."""
    if isinstance(attrs, Cast):
        return attrs.dtype
    if isinstance(attrs, Scan) and number >= attrs.carries:
        return known[attrs.function].get(number, "")
    return ""


def rewritten(
    function: Function, program: Program, wanted: Casts, signatures: Mapping[str, Signature]
) -> Function:
    """The function that takes such inputs cast, and hands them on so."""
    own = wanted.get(function.name, {})
    b = Builder(function.name, program.sizes, signatures)
    mapping: dict[int, int] = {}
    for number, given in enumerate(function.inputs):
        kind = function.types[number]
        kind = structs.replace(kind, dtype=own.get(number, kind.dtype))
        mapping[number] = b.input(given.name, kind, given.role)
    copies: dict[tuple[int, str], int] = {}
    for op in function.ops:
        operands = [mapping[value] for value in op.operands]
        if isinstance(op.attrs, Cast) and op.operands[0] in own:
            mapping[op.results[0]] = operands[0]
            continue
        if isinstance(op.attrs, Scan):
            hand_cast(b, function, op.operands, operands, wanted.get(op.attrs.function, {}), copies)
        b.path, b.span = op.path, op.span
        mapping.update(zip(op.results, b.emit(op.attrs, *operands), strict=True))
    results = [mapping[value] for value in function.results]
    return b.finish(results, function.outputs, function.span)


def hand_cast(
    b: Builder,
    function: Function,
    values: Sequence[int],
    operands: list[int],
    wanted: Mapping[int, str],
    copies: dict[tuple[int, str], int],
) -> None:
    """Put a cast before each operand that the scan's body wants cast, one for each parameter."""
    for number, dtype in wanted.items():
        key = values[number], dtype
        if key not in copies:
            if values[number] < len(function.inputs):
                b.path = function.inputs[values[number]].name
            copies[key] = b.cast(operands[number], dtype)
        operands[number] = copies[key]
