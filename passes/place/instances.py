"""The choices of a placed function as an instance: its streams with the moves between forms."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from msgspec import Struct

from fllmc.ir.ops import AllGather, AllReduce, AllToAll, LocalSlice, ReduceScatter
from fllmc.ir.types import Sizes, Type
from fllmc.passes.place.choices import Form, Instance, Move, Option, Stream
from fllmc.passes.place.options import Way, dim_axes
from fllmc.passes.place.reading import Reading
from fllmc.passes.place.reshard import step_cost, way


class Numbered(Struct, frozen=True):
    """An instance, with the root of each stream. Its steps are the inputs, the ops, the results."""

    instance: Instance
    roots: tuple[int, ...]


Known = dict[tuple[Type, Type], tuple[tuple[Move, Type, Type], ...]]
"""The moves on the way from one form to another, numbered from 0 as they come."""


def instance_of(
    reading: Reading, ways: Sequence[tuple[Way, ...]], sizes: Sizes, known: Known
) -> Numbered:
    """The instance of a function whose ops have these options."""
    function = reading.function
    forms: dict[int, dict[Type, int]] = {
        root: {kind: number for number, kind in enumerate(kinds)}
        for root, kinds in reading.forms.items()
        if root not in reading.fills
    }

    def form(value: int, kind: Type) -> tuple[int, int]:
        own = forms[reading.roots[value]]
        return reading.roots[value], own.setdefault(kind, len(own))

    def option(way: Way, operands: Iterable[int], results: Iterable[int]) -> Option:
        takes = [
            form(value, kind)
            for value, kind in zip(operands, way.takes, strict=True)
            if reading.roots[value] not in reading.fills
        ]
        gives = tuple(form(v, kind) for v, kind in zip(results, way.gives, strict=True))
        return Option(tuple(dict.fromkeys(takes)), gives)

    inputs, kinds = range(len(function.inputs)), function.types
    steps: list[tuple[Option, ...]] = [
        (option(Way((), tuple(kinds[v] for v in inputs)), (), inputs),)
    ]
    for op, found in zip(reading.ops, ways, strict=True):
        steps.append(tuple(option(way, op.operands, op.results) for way in found))
    ends = function.results
    steps.append((option(Way(tuple(kinds[v] for v in ends), ()), ends, ()),))
    roots = tuple(forms)
    number = {root: at for at, root in enumerate(roots)}
    streams = tuple(stream_of(reading, root, forms[root], sizes, known) for root in roots)
    return Numbered(
        Instance(
            streams,
            tuple(
                tuple(
                    Option(numbered(each.takes, number), numbered(each.gives, number))
                    for each in found
                )
                for found in steps
            ),
        ),
        roots,
    )


def numbered(forms: Iterable[Form], number: dict[int, int]) -> tuple[Form, ...]:
    """The forms, their streams by number instead of by root."""
    return tuple((number[root], form) for root, form in forms)


def stream_of(
    reading: Reading, root: int, forms: dict[Type, int], sizes: Sizes, known: Known
) -> Stream:
    """A value's forms, with all steps of ways between them, and those that the rules have.

    The moves of a sum are turned round.
    """
    own = list(forms)
    moves: dict[Move, None] = {}

    def add(move: Move, begin: Type, end: Type) -> Move:
        first, last = (forms.setdefault(kind, len(forms)) for kind in (begin, end))
        if root in reading.sums:
            first, last = last, first
        made = Move(first, last, move.cost, move.attrs)
        moves[made] = None
        return made

    ruled: list[Move] = []
    for op in reading.moves.get(root, ()):
        given, gives = (reading.types[v] for v in (op.operands[0], op.results[0]))
        assert isinstance(op.attrs, AllGather | AllReduce | AllToAll | LocalSlice | ReduceScatter)
        cost = step_cost(op.attrs, given, gives, sizes)
        ruled.append(add(Move(0, 0, cost, op.attrs), given, gives))
    for begin in own:
        for end in own:
            if begin != end:
                for move in between(begin, end, sizes, known):
                    add(*move)
    return Stream(tuple(forms), tuple(moves), tuple(ruled))


def between(
    begin: Type, end: Type, sizes: Sizes, known: Known
) -> tuple[tuple[Move, Type, Type], ...]:
    """The moves from one form to another, with the types before and after; none if it can't be."""
    if (begin, end) not in known:
        found = way(begin, dim_axes((end,)), end.partial, sizes)
        kinds = [begin, *(kind for _, kind in found.steps)]
        known[begin, end] = (
            tuple(
                (Move(0, 0, step_cost(attrs, a, b, sizes), attrs), a, b)
                for a, (attrs, b) in zip(kinds, found.steps, strict=False)
            )
            if kinds[-1] == end
            else ()
        )
    return known[begin, end]
