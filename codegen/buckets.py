"""Buckets: stretches of memory in which the tensors that a bucketed op works on adjoin."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import Bucketed
from fllmc.ir.plan import Bucket, Frame, Region, Stored
from fllmc.ir.program import Function, Op, Program


def result_lists(op: Op, body: Function) -> list[Sequence[int]]:
    """The results of a bucketed op by result of its function: lists of regions, or one sum."""
    assert isinstance(op.attrs, Bucketed)
    left = iter(op.results)
    counts = (len(op.attrs.regions) if body.types[value].dims else 1 for value in body.results)
    return [[next(left) for _ in range(count)] for count in counts]


def position(op: Op, body: Function, result: int) -> tuple[int, int]:
    """The result of its function and the region that a bucketed op's result belongs to."""
    wanted = op.results[result]
    lists = enumerate(result_lists(op, body))
    return next((at, held.index(wanted)) for at, held in lists if wanted in held)


def value_lists(function: Function, program: Program) -> Iterator[tuple[str, Op, Sequence[int]]]:
    """Lists of values that must adjoin: the name of each in its bucket, its op and the values."""
    for op in function.ops:
        if not isinstance(op.attrs, Bucketed):
            continue
        body = program.function(op.attrs.function)
        for given, values in zip(body.inputs, op.attrs.listed(op.operands), strict=False):
            yield given.name, op, values
        for output, value, values in zip(
            body.outputs, body.results, result_lists(op, body), strict=True
        ):
            if body.types[value].dims:
                yield output, op, values


def runs(lists: Sequence[tuple[int, ...]], apart: Callable[[int], bool]) -> list[tuple[int, ...]]:
    """The distinct lists of storage classes; those `apart` lie elsewhere.

    InternalError if a class would have to lie in two places.
    """
    found: dict[int, tuple[int, ...]] = {}
    for held in lists:
        if all(apart(root) for root in held):
            continue
        if len(set(held)) < len(held) or any(apart(root) for root in held):
            raise InternalError(f"the regions {held} of a bucket can't adjoin")
        for root in held:
            if found.setdefault(root, held) != held:
                raise InternalError(f"the regions {held} of a bucket adjoin others")
    return list(dict.fromkeys(found.values()))


def more_runs(
    known: Sequence[tuple[int, ...]],
    wishes: Sequence[tuple[int, ...]],
    apart: Callable[[int], bool],
) -> list[tuple[int, ...]]:
    """The lists that must adjoin with those that had better, where nothing stands against it."""
    found = list(known)
    taken = {root for run in found for root in run}
    for held in wishes:
        free = not any(apart(root) or root in taken for root in held)
        if free and len(set(held)) == len(held) > 1:
            found.append(held)
            taken.update(held)
    return found


def stored_name(function: Function, frame: Frame, value: int) -> str | None:
    """The name of the stored tensor that an entry's value lies in, if it does."""
    place = frame.places[value]
    if place.kind == "argument":
        return function.inputs[place.number].name
    if place.kind != "result":
        return None
    output = function.outputs[place.number]
    return f"{output}'" if any(given.name == output for given in function.inputs) else output


def stored_runs(program: Program, frames: Mapping[str, Frame]) -> list[tuple[str, ...]]:
    """Stored tensors that must adjoin, by name. InternalError where they can't."""
    found: dict[str, tuple[str, ...]] = {}
    for entry in program.entries:
        function, frame = program.function(entry), frames[entry]
        for _, _, values in value_lists(function, program):
            names = tuple(stored_name(function, frame, value) or "" for value in values)
            for name in names if any(names) else ():
                if not all(names) or found.setdefault(name, names) != names:
                    raise InternalError(f"the regions {', '.join(names)} of a bucket can't adjoin")
    return list(dict.fromkeys(found.values()))


def buckets(
    program: Program, frames: Mapping[str, Frame], stored: Sequence[Stored], base: int
) -> tuple[Bucket, ...]:
    """Every bucket of the entries; InternalError unless its regions adjoin.

    `base` is where the entries' frames begin.
    """
    held = {each.name: each for each in stored}
    found: dict[tuple[int, int], Bucket] = {}
    for entry in program.entries:
        function, frame = program.function(entry), frames[entry]
        for holds, op, values in value_lists(function, program):
            assert isinstance(op.attrs, Bucketed)
            regions: list[Region] = []
            for name, value in zip(op.attrs.regions, values, strict=True):
                of = stored_name(function, frame, value)
                at = held[of].offset if of else base + frame.places[value].number
                kind = function.types[value]
                size, shape = program.sizes.local_bytes(kind), program.sizes.local_shape(kind)
                regions.append(Region(name, at, size, shape))
            check_adjoining(regions)
            start, size = regions[0].offset, sum(region.bytes for region in regions)
            made = Bucket(op.attrs.bucket, holds, entry, start, size, tuple(regions))
            found.setdefault((start, size), made)
    return tuple(found.values())


def check_adjoining(regions: Sequence[Region]) -> None:
    """InternalError unless each region begins where the one before ends."""
    at = regions[0].offset
    for region in regions:
        if region.offset != at:
            raise InternalError(f"{region.name} lies at {region.offset}, not at {at}")
        at += region.bytes
