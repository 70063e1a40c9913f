"""Placed programs with their collectives where they cost least, and the proof of it.

Each function is taken by itself: what it is given and gives keeps its form, so the rules of
`rules.py` say how values are placed between functions, and are a solution to begin with. A function
is changed only where that moves fewer bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct

from fllmc.ir.ops import Scan
from fllmc.ir.plan import Decision
from fllmc.ir.program import Function, Program
from fllmc.ir.quantities import bytes_text
from fllmc.ir.types import Sizes, Type
from fllmc.passes.place.carry_out import Writer
from fllmc.passes.place.choices import NOTHING, Move
from fllmc.passes.place.classes import Classes
from fllmc.passes.place.directives import Layout
from fllmc.passes.place.instances import Known, Numbered, instance_of
from fllmc.passes.place.options import Options, Way
from fllmc.passes.place.reading import Reading, read
from fllmc.passes.place.solve import Solution, solve
from fllmc.passes.place.sums import with_sums


class Settled(Struct, frozen=True):
    """A program whose functions are placed at least cost, and by function what is known of it."""

    program: Program
    solutions: Mapping[str, Solution]


def settle(program: Program, layout: Layout) -> Settled:
    """The placed program with each function at least cost."""
    classes, known = Classes(program, layout), Known()
    done: list[Function] = []
    solutions: dict[str, Solution] = {}
    for function in program.functions:
        reading = with_sums(read(function))
        if reading.moves:
            function, solutions[function.name] = improved(reading, program, layout, classes, known)
        done.append(function)
    return Settled(program.with_functions(*done), solutions)


def improved(
    reading: Reading, program: Program, layout: Layout, classes: Classes, known: Known
) -> tuple[Function, Solution]:
    """The function at least cost; itself where the rules have that."""
    ways = options(reading, program, layout, classes)
    found = instance_of(reading, ways, program.sizes, known)
    solution = solve(found.instance)
    if solution.cost >= solution.ruled:
        return reading.function, solution
    return written(reading, program, ways, found, solution), solution


def options(
    reading: Reading, program: Program, layout: Layout, classes: Classes
) -> list[tuple[Way, ...]]:
    """The ways in which each op of a function may be done."""
    name = reading.function.name
    fixed = frozenset(
        root for value, root in enumerate(reading.roots) if classes.holds(name, value)
    )
    return Options(reading, layout, program.sizes, fixed).found()


def written(
    reading: Reading,
    program: Program,
    ways: list[tuple[Way, ...]],
    found: Numbered,
    solution: Solution,
) -> Function:
    """The function as the solution has it."""
    moves: dict[int, dict[Type, tuple[Type, Move]]] = {}
    for root, stream, made in zip(found.roots, found.instance.streams, solution.moves, strict=True):
        moves[root] = {stream.forms[m.end]: (stream.forms[m.begin], m) for m in made}
    chosen = [own[pick] for own, pick in zip(ways, solution.picks[1:-1], strict=True)]
    return Writer(reading, moves, program.sizes, program.signatures).write(chosen)


def turns(program: Program, entry: str) -> dict[str, int]:
    """How often an entry runs each function."""
    found = {entry: 1}

    def visit(function: Function, times: int, sizes: Sizes) -> None:
        for op in function.ops:
            if isinstance(op.attrs, Scan):
                count = times * sizes.size(op.attrs.over)
                found[op.attrs.function] = found.get(op.attrs.function, 0) + count
                visit(program.function(op.attrs.function), count, sizes)

    visit(program.function(entry), 1, program.sizes)
    return found


def decisions(settled: Settled) -> Iterator[Decision]:
    """What each entry's collectives move, the bound, and what the rules alone would move."""
    for entry in settled.program.entries:
        runs = turns(settled.program, entry)
        found = {name: each for name, each in settled.solutions.items() if name in runs}
        if any(each.cost for each in found.values()):
            yield decision(entry, found, runs)


def decision(entry: str, found: Mapping[str, Solution], runs: Mapping[str, int]) -> Decision:
    """The decision about the collectives of an entry and of the functions that it runs."""
    cost = sum((each.cost * runs[name] for name, each in found.items()), NOTHING)
    bound = sum(each.bound * runs[name] for name, each in found.items())
    return Decision(
        f"what {entry} moves",
        f"a rank that runs all of it sends {bytes_text(int(cost))} in collectives",
        proof(list(found.values()), 1 - bound / float(cost)),
        rejected(found, runs),
    )


def proof(found: Sequence[Solution], gap: float) -> str:
    """Why that is the least, or how near to it."""
    variables = sum(each.variables for each in found)
    if not variables:
        return "no op can be done elsewhere as the directives are, and no moves cost less"
    least = "less" if gap <= 1e-6 else f"{100 * gap:.1f} % less"
    how = "its relaxation" if all(each.relaxed for each in found) else "a search"
    return (
        "with what passes between functions as it is, no placement that the directives allow "
        f"moves {least}, as {how} proves; integer program of {variables} variables"
    )


def rejected(found: Mapping[str, Solution], runs: Mapping[str, int]) -> str:
    """What the rules alone would move, or where they are best, what moves that share nothing do."""
    changed = [f"`{name}`" for name, each in found.items() if each.cost < each.ruled]
    dearer = {name: (each.ruled if changed else each.apart) for name, each in found.items()}
    more = sum(((dearer[name] - each.cost) * runs[name] for name, each in found.items()), NOTHING)
    if changed:
        shown = f"{bytes_text(int(more))} more, in {', '.join(changed)}"
        return f"collectives where the rules put them: {shown}"
    return f"moving values anew for each use: {bytes_text(int(more))} more" if more else ""
