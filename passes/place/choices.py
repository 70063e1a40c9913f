"""What may be chosen when a function is placed: data of an integer program, and its exact cost.

A stream is a value in all forms that it may be had in; moves lead from form to form at a cost. A
step is an op, with one or more options: the forms that it takes and those that it gives. Whatever
options are picked, each stream is made in one form, and moved from there to all forms that are
taken of it; what several of these need is moved once, so the moves are a cheapest directed tree
(Steiner's problem). Option 0 of each step and the moves in `ruled` are what the rules have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

from msgspec import Struct

from fllmc.ir.ops import AnyAttrs
from fllmc.ir.types import Type

Form = tuple[int, int]
"""A stream and the form of it, by number."""

Tree = tuple[Fraction, frozenset[int]]
"""What moves cost together, and their numbers."""

NOTHING = Fraction(0)


class Move(Struct, frozen=True):
    """A collective or local slice from one form to another; `cost` is bytes that a rank sends."""

    begin: int
    end: int
    cost: Fraction
    attrs: AnyAttrs


class Stream(Struct, frozen=True):
    """The forms of a value, by number, the moves between them, and those that the rules make."""

    forms: tuple[Type, ...]
    moves: tuple[Move, ...]
    ruled: tuple[Move, ...] = ()

    @property
    def ruled_cost(self) -> Fraction:
        """What the rules' moves cost."""
        return sum((move.cost for move in self.ruled), NOTHING)


class Option(Struct, frozen=True):
    """One way to place an op: the forms that it takes, for each operand, and those it gives."""

    takes: tuple[Form, ...]
    gives: tuple[Form, ...]


class Instance(Struct, frozen=True):
    """All choices of a function."""

    streams: tuple[Stream, ...]
    steps: tuple[tuple[Option, ...], ...]

    @property
    def ruled_cost(self) -> Fraction:
        """What the rules' solution costs."""
        return sum((stream.ruled_cost for stream in self.streams), NOTHING)


def needs(instance: Instance, picks: Sequence[int]) -> dict[int, tuple[int, tuple[int, ...]]]:
    """For each stream the form in which it is made, and those in which it is taken, sorted."""
    made: dict[int, int] = {}
    taken: dict[int, set[int]] = {}
    for options, pick in zip(instance.steps, picks, strict=True):
        made.update(options[pick].gives)
        for stream, form in options[pick].takes:
            taken.setdefault(stream, set()).add(form)
    return {stream: (form, tuple(sorted(taken.get(stream, ())))) for stream, form in made.items()}


class Prices:
    """What picks cost, exactly; trees that were priced before are remembered."""

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self._known: dict[tuple[int, int, tuple[int, ...]], Tree | None] = {}

    def tree(self, stream: int, source: int, wanted: tuple[int, ...]) -> Tree | None:
        """The cheapest moves that make these forms; None where one can't be had."""
        key = stream, source, wanted
        if key not in self._known:
            moves = self.instance.streams[stream].moves
            self._known[key] = cheapest_tree(moves, source, wanted)
        return self._known[key]

    def trees(self, picks: Sequence[int]) -> dict[int, Tree] | None:
        """The cheapest moves of each stream for these options; None where a form can't be had."""
        found: dict[int, Tree] = {}
        for stream, (source, wanted) in needs(self.instance, picks).items():
            tree = self.tree(stream, source, wanted)
            if tree is None:
                return None
            found[stream] = tree
        return found

    def cost(self, picks: Sequence[int]) -> Fraction | None:
        """The least cost of moves for these options; None where a form can't be had."""
        found = self.trees(picks)
        return None if found is None else sum((tree[0] for tree in found.values()), NOTHING)


def cheapest_tree(moves: Sequence[Move], source: int, wanted: Iterable[int]) -> Tree | None:
    """The cheapest moves that make all wanted forms of the source; None if one can't be made.

    Dreyfus and Wagner 1971, directed: best[set][form] makes a set of forms starting at a form.
    """
    goals = tuple(form for form in dict.fromkeys(wanted) if form != source)
    if not goals:
        return NOTHING, frozenset()
    best: dict[int, dict[int, Tree]] = {}
    for subset in range(1, 1 << len(goals)):
        begin: dict[int, Tree] = {}
        if subset & (subset - 1) == 0:
            begin[goals[subset.bit_length() - 1]] = NOTHING, frozenset()
        part = (subset - 1) & subset
        while part:
            joined(begin, best[part], best[subset ^ part], moves)
            part = (part - 1) & subset
        best[subset] = spread_back(begin, moves)
    return best[(1 << len(goals)) - 1].get(source)


def joined(
    into: dict[int, Tree], one: Mapping[int, Tree], two: Mapping[int, Tree], moves: Sequence[Move]
) -> None:
    """Two trees that start at the same form, as one."""
    for form in one:
        if form in two:
            both = one[form][1] | two[form][1]
            better(into, form, (sum((moves[n].cost for n in sorted(both)), NOTHING), both))


def spread_back(begin: dict[int, Tree], moves: Sequence[Move]) -> dict[int, Tree]:
    """The trees, each also begun earlier by moves that lead to where it starts (Bellman, Ford)."""
    changes = True
    while changes:
        changes = False
        for number, move in enumerate(moves):
            if move.end in begin and number not in begin[move.end][1]:
                cost, tree = begin[move.end]
                longer = cost + move.cost, tree | {number}
                changes = better(begin, move.begin, longer) or changes
    return begin


def better(into: dict[int, Tree], form: int, tree: Tree) -> bool:
    """Put the tree there if it costs less, or as much with fewer moves; whether it does."""
    known = into.get(form)
    if known is None or (tree[0], len(tree[1])) < (known[0], len(known[1])):
        into[form] = tree
        return True
    return False
