"""A checkpoint section with sizes: every foreign name in numbers, every layout in elements."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod

from fllmc.frontend import ast
from fllmc.frontend.checkpoint_errors import (
    BadForeignName,
    CoveredTwice,
    LayoutDiffers,
    NotCovered,
)
from fllmc.frontend.errors import BadSize
from fllmc.frontend.semantics.foreign_lines import Line, Names, Spot, Term, shown, shown_path
from fllmc.frontend.semantics.layouts import MARK, Token
from fllmc.frontend.semantics.sizes import Number, evaluate
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.foreign import Count, Factor, Foreign, Loop, Part, Pattern, Tensor

Size = Callable[[str], int]
DIGITS = re.compile(r"\d+")
TOUCHING = re.compile(r"\0[\0\d]|\d\0")
"""A number beside another one."""
MOST = 1_000_000
"""How many tensors one line of a section may stand for."""


def lower_names(names: Names, size: Size) -> tuple[Foreign | None, tuple[Diagnostic, ...]]:
    """The mapping in numbers; None with at least one mistake. `size` gives that of a dim."""
    found: list[Diagnostic] = []
    tensors: list[Tensor] = []
    for line in names.lines:
        try:
            tensors.append(_tensor(line, size))
        except DiagnosticError as error:
            found += error.diagnostics
    found += _too_many(names, tensors)
    if not found:
        found += [*_gaps(names, size), *_collisions(names, tensors)]
    if found:
        return None, tuple(found)
    dims = tuple((i.dim.text, shown(i.key)) for i in names.config if isinstance(i, ast.ConfigDim))
    values = tuple(
        (i.key.value, json_of(i.value)) for i in names.config if isinstance(i, ast.ConfigValue)
    )
    sizes = tuple((dim, size(dim)) for dim, _ in dims)
    return Foreign(names.name.text, tuple(tensors), names.ignored, dims, values, sizes), ()


def _too_many(names: Names, tensors: list[Tensor]) -> Iterator[Diagnostic]:
    """Each tensor of a kind is looked at by itself, so a slip in a size must not make billions."""
    for tensor in tensors:
        count = prod(loop.count for loop in tensor.loops)
        if count > MOST:
            what = f"checkpoint `{names.name.text}` would have {count:_} tensors of one kind"
            yield BadSize(names.name.span, what, f"{MOST:_} are the most")
            return


def _tensor(line: Line, size: Size) -> Tensor:
    spot = line.spots[0]
    loops = tuple(
        _loop(spot, number, name, size(dim))
        for number, (dim, name) in enumerate(spot.indexed)
        if isinstance(name, str)
    )
    names = tuple(_pattern(name, line, size) for name in line.names)
    parts = tuple(_part(line, number, spot, size) for number, spot in enumerate(line.spots))
    return Tensor(names, loops, parts)


def _loop(spot: Spot, number: int, name: str, count: int) -> Loop:
    """The index of an indexed dim; that of a stack of a pattern takes some of its layers."""
    if number < spot.stacks and spot.period:
        return Loop(name, count, spot.period, spot.layers)
    return Loop(name, count)


def _pattern(name: tuple[str | Term, ...], line: Line, size: Size) -> Pattern:
    return Pattern(tuple(p if isinstance(p, str) else _count(p, line, size) for p in name))


def _count(term: Term, line: Line, size: Size) -> Count:
    """A number in a name, as factors of its indices; it must be linear in them and not negative."""
    written = dict(term.indices)

    def at(values: dict[str, int]) -> Number:
        def named(ref: ast.Ref) -> Number:
            return values.get(ref.name, 0) if ref.name in written else size(ref.name)

        return evaluate(term.expr, named, "the number in a name")

    offset = at({})
    factors = {old: at({old: 1}) - offset for old in written}
    checks = [({old: 2}, offset + 2 * factor) for old, factor in factors.items()]
    checks.append((dict.fromkeys(written, 1), offset + sum(factors.values())))
    numbers = [offset, *factors.values()]
    whole = all(isinstance(each, int) for each in numbers)
    if not whole or offset < 0 or any(at(where) != value for where, value in checks):
        reason = "a number in it is no sum of multiples of its indices"
        raise DiagnosticError(BadForeignName(line.span, reason))
    used = tuple((written[old], int(factor)) for old, factor in factors.items() if factor)
    return Count(used, int(offset))


def _part(line: Line, number: int, spot: Spot, size: Size) -> Part:
    layout, split = line.layout, line.layout.split[number]
    lead = spot.indexed[spot.stacks :]
    for dim, index in spot.indexed:
        if isinstance(index, int) and index >= _size(dim, size):
            reason = f"`{dim}` is {_size(dim, size)}, so there is no {index}"
            raise DiagnosticError(LayoutDiffers(line.span, spot.name, reason, dim))
    for dim, tokens in zip(spot.rest, split, strict=True):
        if prod(_size(token, size) for token in tokens) != _size(dim, size):
            reason = f"`{dim}` is {_size(dim, size)}, and is not split evenly so"
            raise DiagnosticError(LayoutDiffers(line.span, spot.name, reason, dim))
    order = [token for tokens in split for token in tokens]
    axes: list[tuple[Factor, ...]] = []
    taken: list[Token] = []
    for axis in layout.axes:
        factors: list[Factor] = []
        for factor in axis:
            lengths = [prod(_size(token, size) for token in term) for term in factor.terms]
            before = sum(lengths[:number]) if factor.sum else 0
            total = sum(lengths) if factor.sum else lengths[number]
            dims = tuple(_position(token, order, taken) for token in factor.terms[number])
            factors.append(Factor(total, before, lengths[number], dims))
        axes.append(tuple(factors))
    shape = tuple(_size(dim, size) for dim, _ in lead) + tuple(
        _size(dim, size) for dim in spot.rest
    )
    return Part(
        _native(spot),
        shape,
        tuple(_place(index) for _, index in lead),
        tuple(_size(token, size) for token in order),
        tuple(len(tokens) for tokens in split),
        tuple(axes),
    )


def _position(token: Token, order: list[Token], taken: list[Token]) -> int:
    """Where a dim stands among the split ones; of equal ones the next."""
    places = [number for number, each in enumerate(order) if each == token]
    taken.append(token)
    return places[taken.count(token) - 1]


def _native(spot: Spot) -> Pattern:
    parts: list[str | Count] = []
    for number, part in enumerate(spot.path):
        dot = "." if number else ""
        if isinstance(part, int):
            parts.append(f"{dot}{part}")
        elif part.startswith("{"):
            parts += [dot, Count(((part[1:], 1),))]
        else:
            parts.append(dot + part)
    return Pattern(tuple(parts))


def _place(index: str | int) -> Count:
    return Count((), index) if isinstance(index, int) else Count(((index, 1),))


def _size(token: str, size: Size) -> int:
    return int(token[1:]) if token.startswith("#") else size(token.rstrip(MARK))


def _gaps(names: Names, size: Size) -> Iterator[Diagnostic]:
    """Parameters of which lines speak in part only, by numbers for indices."""
    covered: dict[str, list[tuple[Spot, Line]]] = {}
    for line in names.lines:
        for spot in line.spots:
            covered.setdefault(spot.name, []).append((spot, line))
    for name, spots in covered.items():
        first, line = spots[0]
        layers = tuple(sorted({layer for spot, _ in spots for layer in spot.layers}))
        held = sum(_elements(spot, spot.layers, size, True) for spot, _ in spots)
        whole = _elements(first, layers, size, False)
        if held != whole:
            what = f"all of `{name}`"
            missing = f"{whole - held} of {whole} elements of `{name}`"
            subject, dims = names.subject.name, ", ".join(first.rest)
            where = shown_path(first)
            yield NotCovered(line.span, names.name.text, subject, what, missing, where, dims)


def _elements(spot: Spot, layers: tuple[int, ...], size: Size, numbers: bool) -> int:
    """The elements of a parameter in these layers of a pattern; with `numbers`, of a spot of it."""
    total = prod(_size(dim, size) for dim in spot.rest)
    for number, (dim, index) in enumerate(spot.indexed):
        if numbers and isinstance(index, int):
            continue
        every = range(_size(dim, size))
        pattern = number < spot.stacks and spot.period
        total *= sum(n % spot.period in layers for n in every) if pattern else len(every)
    return total


def _collisions(names: Names, tensors: list[Tensor]) -> Iterator[Diagnostic]:
    """Foreign names that two tensors have. Only those are spelt out that may be equal to others."""
    forms = Counter(_form(pattern) for tensor in tensors for pattern in tensor.names)
    seen: dict[str, Line] = {}
    for line, tensor in zip(names.lines, tensors, strict=True):
        patterns = [
            each for each in tensor.names if forms[_form(each)] > 1 or not _one_to_one(each)
        ]
        for place in tensor.places() if patterns else ():
            for pattern in patterns:
                name = pattern.at(place)
                if name in seen:
                    yield CoveredTwice(line.span, "foreign tensor", name, seen[name].span)
                    return
                seen[name] = line


def _form(pattern: Pattern) -> str:
    """The name with a mark for each number: names that are equal have equal forms."""
    text = "".join(part if isinstance(part, str) else "0" for part in pattern.parts)
    return DIGITS.sub("#", text)


def _one_to_one(pattern: Pattern) -> bool:
    """Whether other indices surely give another name: each has a number of its own."""
    counts = [part for part in pattern.parts if isinstance(part, Count)]
    texts = "".join(part if isinstance(part, str) else "\0" for part in pattern.parts)
    return all(len(each.factors) <= 1 for each in counts) and not TOUCHING.search(texts)


def json_of(value: ast.Expr) -> str:
    """A record's value as JSON; a word stands for a text, but `none` for null.

    A number written with a point stays one: what reads it may tell 30.0 from 30.
    """
    match value:
        case ast.Number(value=number, text=text):
            return repr(float(number) if set(text) & set(".eE") else number)
        case ast.Boolean(value=truth):
            return "true" if truth else "false"
        case ast.String(value=text):
            return _quoted(text)
        case ast.Ref(name="none"):
            return "null"
        case ast.Ref(name=name):
            return _quoted(name)
        case ast.List(items=items) | ast.Tuple(items=items):
            return "[" + ", ".join(map(json_of, items)) + "]"
        case _:
            raise DiagnosticError(BadForeignName(value.span, "this is no value of a configuration"))


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + escaped.replace("\n", "\\n").replace("\t", "\\t") + '"'
