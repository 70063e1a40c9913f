"""Places in `checkpoint` sections: the parameters or blocks that a path with indices leads to.

In a stack of a pattern `body[i].attn.wq` leads to the layers that have such a parameter, and
`body[i]`, with the section of a block, to those that are this block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from msgspec import Struct, structs

from fllmc.frontend import ast
from fllmc.frontend.semantics.foreign_lines import Index
from fllmc.frontend.semantics.typed import Block, Key, Nested, Param
from fllmc.ir.span import Span

PlacePart = ast.Name | ast.Ref | ast.Number
Blocks = Mapping[Key, Block]


class Place(Struct, frozen=True):
    """Where a path leads: a member, the path with indices, the stacks' dims with theirs.

    `left` are indices behind the member. In a stack of a pattern of `period` layers it leads to
    those whose numbers leave one of `layers` as a remainder.
    """

    member: Param | Nested
    path: tuple[Index, ...] = ()
    indexed: tuple[tuple[str, Index], ...] = ()
    left: tuple[Index, ...] = ()
    period: int = 0
    layers: tuple[int, ...] = ()


class Misplaced(Exception):
    """A path leads nowhere; the text says why. `name` was looked for among `known`."""

    def __init__(
        self, reason: str, span: Span | None = None, name: str = "", known: tuple[str, ...] = ()
    ) -> None:
        super().__init__(reason)
        self.span, self.name, self.known = span, name, known


def resolved(
    parts: Sequence[PlacePart], subject: Key, blocks: Blocks, wanted: Key | None = None
) -> Place:
    """Where a path from a block leads; Misplaced if nowhere.

    It leads to a parameter, or to a block if one is `wanted`.
    """
    head, *rest = parts
    block = blocks.get(subject)
    members = {member.name: member for member in block.members} if block else {}
    if not isinstance(head, ast.Name) or head.text not in members:
        raise Misplaced("unknown name", head.span, getattr(head, "text", ""), tuple(members))
    member = members[head.text]
    if isinstance(member, Param):
        return _parameter(member, rest, wanted)
    if member.over:
        if not rest or isinstance(rest[0], ast.Name):
            raise Misplaced(f"`{member.name}` is a stack: write `{member.name}[i]`", head.span)
        return _in_stack(member, index_of(rest[0]), rest[1:], blocks, wanted)
    found = _in_block(member, rest, blocks, wanted)
    return structs.replace(found, path=(member.name, *found.path))


def _parameter(member: Param, rest: Sequence[PlacePart], wanted: Key | None) -> Place:
    names = [part for part in rest if isinstance(part, ast.Name)]
    if names or wanted:
        raise Misplaced(
            f"`{member.name}` is a parameter, not a block", names[0].span if names else None
        )
    if len(rest) > len(member.stored):
        raise Misplaced("more indices than dims")
    return Place(member, (member.name,), left=tuple(index_of(part) for part in rest))


def _in_block(
    member: Nested, rest: Sequence[PlacePart], blocks: Blocks, wanted: Key | None
) -> Place:
    if rest:
        return resolved(rest, member.block, blocks, wanted)
    if wanted is None:
        known = tuple(blocks[member.block].params) if member.block in blocks else ()
        raise Misplaced("this is a block: a parameter of it is wanted", known=known)
    if member.block != wanted:
        raise Misplaced(f"the section is for `{wanted.name}`, and this is `{member.block.name}`")
    return Place(member)


def _in_stack(
    member: Nested, index: Index, rest: Sequence[PlacePart], blocks: Blocks, wanted: Key | None
) -> Place:
    marked = "{" + index if isinstance(index, str) else index
    found: dict[int, Place] = {}
    first: Misplaced | None = None
    layers = _layers(member, index, blocks)
    for number, layer in layers:
        try:
            found[number] = _in_block(layer, rest, blocks, wanted)
        except Misplaced as wrong:
            first = first or wrong
    if first is not None and not found:
        raise first
    kinds = {each.member.stored for each in found.values() if isinstance(each.member, Param)}
    if len(kinds) > 1:
        raise Misplaced("its dims differ between layers: name them by a section for each block")
    place = next(iter(found.values()))
    return structs.replace(
        place,
        path=(member.name, marked, *place.path),
        indexed=((member.over, index), *place.indexed),
        period=member.period,
        layers=tuple(found) if member.period else (),
    )


def _layers(member: Nested, index: Index, blocks: Blocks) -> Iterator[tuple[int, Nested]]:
    """The layers of a stack that an index may mean, each kind once."""
    if not member.period:
        yield 0, member
        return
    for number, layer in enumerate(blocks[member.block].nested.values()):
        if isinstance(index, str) or index % member.period == number:
            yield number, layer


def index_of(part: PlacePart) -> Index:
    """An index: its name, or its number."""
    return int(part.value) if isinstance(part, ast.Number) else getattr(part, "name", "")
