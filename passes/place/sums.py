"""Sums of several terms in a reading, taken apart so that it can be chosen where terms are joined.

A sum is a value of its own that is gathered, not handed out: each term is added to it in some form,
what has that form by then is moved on as one, and all ends in the form of the result. That is the
tree of moves of a handed-out value with every move turned round. So a sum stands in a reading as a
value without a number in the function, a pseudo-op `term` for each term, which takes its value and
the sum in one form, and a pseudo-op `total`, which gives the sum and the result in one form.

Rules add terms that are open alike first, and then these sums: nested ops of one path, which are
one sum here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from msgspec import structs

from fllmc.ir.ops import AddN
from fllmc.ir.program import Op
from fllmc.passes.place.reading import Reading


class Sum(NamedTuple):
    """The values that are added, and the roots of the partial sums on the way."""

    terms: tuple[int, ...]
    inner: tuple[int, ...]


def with_sums(reading: Reading) -> Reading:
    """The reading with its sums taken apart."""
    found = sums_of(reading)
    types, roots = list(reading.types), list(reading.roots)
    forms, moves = dict(reading.forms), dict(reading.moves)
    absorbed = {root for each in found.values() for root in each.inner}
    ops: list[Op] = []
    virtual: list[int] = []
    for op in reading.ops:
        each = found.get(op.results[0]) if op.results else None
        if each is None:
            if not absorbed.intersection(op.results):
                ops.append(op)
            continue
        own = len(types)
        types.append(reading.types[op.results[0]])
        roots.append(own)
        virtual.append(own)
        kinds = [reading.types[value] for value in (*each.terms, *op.results)]
        kinds += [kind for root in each.inner for kind in forms.pop(root)]
        forms[own] = tuple(dict.fromkeys(kinds))
        moves[own] = tuple(move for root in each.inner for move in moves.pop(root, ()))
        ops += [structs.replace(op, operands=(term, own), results=()) for term in each.terms]
        ops.append(structs.replace(op, operands=(), results=(own, *op.results)))
    return structs.replace(
        reading,
        types=tuple(types),
        roots=tuple(roots),
        ops=tuple(ops),
        forms=forms,
        moves=moves,
        sums=frozenset(virtual),
    )


def sums_of(reading: Reading) -> dict[int, Sum]:
    """The sums by their result; those that are but terms of another of the same op are in that."""
    uses = used(reading)
    found: dict[int, tuple[Op, Sum]] = {}
    for op in reading.ops:
        if isinstance(op.attrs, AddN) and of_one_type(reading, op):
            terms: list[int] = []
            inner: list[int] = []
            for value in op.operands:
                root = reading.roots[value]
                one = found.get(root)
                if one is None or uses[root] != 1 or not of_one_place(one[0], op):
                    terms.append(value)
                    continue
                del found[root]
                terms += one[1].terms
                inner += (*one[1].inner, root)
            found[op.results[0]] = op, Sum(tuple(terms), tuple(inner))
    return {result: each for result, (_, each) in found.items()}


def of_one_place(one: Op, other: Op) -> bool:
    """Whether two ops place the same op of the source."""
    return (one.path, one.span) == (other.path, other.span)


def of_one_type(reading: Reading, op: Op) -> bool:
    """Whether all terms and the result are one type but for placement, and none is a constant."""
    values = (*op.operands, *op.results)
    kinds = {reading.types[value].unplaced() for value in values}
    constant = any(reading.roots[value] in reading.fills for value in values)
    return len(kinds) == 1 and not constant


def used(reading: Reading) -> Mapping[int, int]:
    """How often each root is used, in any form."""
    found: dict[int, int] = {}
    for root in all_uses(reading):
        found[root] = found.get(root, 0) + 1
    return found


def all_uses(reading: Reading) -> Iterator[int]:
    """The root of each operand and result."""
    for op in reading.ops:
        yield from (reading.roots[value] for value in op.operands)
    yield from (reading.roots[value] for value in reading.function.results)
