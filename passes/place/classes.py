"""Which values belong to a parameter: its casts, gradients, accumulators, states and updates.

Values that elementwise ops join one to one (all operands and the result have the same dims) have to
be placed alike, so they form classes, across the functions that scans run. So do the forms that
moves give a value, where there are any yet. In an entry, a class
that contains a parameter or a state of it is stored as the parameter is. What its scans are given
of it, and what they sum up, has a place of its own: see `zero.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from fllmc.ir.ops import Cast, Elementwise, Scan, Transpose
from fllmc.ir.program import Function, Op, Parameter, Program
from fllmc.ir.types import Type
from fllmc.passes.naming import CHUNKS
from fllmc.passes.place.directives import Axes, Layout
from fllmc.passes.place.reading import MOVES

Key = tuple[str, int]
"""A value: the function's name and the number in it."""


class Link(NamedTuple):
    """A value of an entry and the one of a scan's body that it is handed to or comes from."""

    outer: Key
    inner: Key
    summed: bool


class Classes:
    """The values of parameters; `axes` is how a value of a parameter is stored."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self._parent: dict[Key, Key] = {}
        self._functions = {function.name: function for function in program.functions}
        self._links: list[Link] = []
        for function in program.functions:
            for op in function.ops:
                self._join_op(function, op, function.name in program.entries)
        owners: dict[Key, Parameter] = {}
        for name in program.entries:
            self._root_entry(self._functions[name], program.parameters, owners)
        self._found: dict[Key, Axes] = {
            key: layout.stored_axes(owner.name, owner.type.names) for key, owner in owners.items()
        }
        self._follow_links(owners, layout)

    def _follow_links(self, owners: dict[Key, Parameter], layout: Layout) -> None:
        """Give each scan its places, and what bodies give of their parameters back that place.

        So what a forward pass keeps of a parameter for the backward pass stays in parts.
        """
        links = sorted(self._links, key=lambda link: not link.summed)
        changes = True
        while changes:
            changes = False
            for link in links:
                outer, inner = self._root(link.outer), self._root(link.inner)
                owner = owners.get(outer)
                if owner is not None and inner not in owners:
                    place = layout.summed if link.summed else layout.used
                    axes = place(owner.name, owner.type.names)
                    owners[inner], self._found[inner] = owner, axes
                    changes = True
                elif owner is None and inner in owners and link.summed:
                    owners[outer], self._found[outer] = owners[inner], self._found[inner]
                    changes = True

    def holds(self, function: str, value: int) -> bool:
        """Whether the value belongs to a parameter."""
        return self._root((function, value)) in self._found

    def axes(self, function: str, value: int) -> Axes | None:
        """The placement of what belongs to a parameter, if the value does."""
        return self._found.get(self._root((function, value)))

    def _root(self, key: Key) -> Key:
        root = key
        while (up := self._parent.get(root, root)) != root:
            root = up
        while (up := self._parent.get(key, key)) != root:
            self._parent[key] = root
            key = up
        return root

    def _join(self, a: Key, b: Key) -> None:
        first, second = sorted((self._root(a), self._root(b)))
        self._parent[second] = first

    def _join_op(self, function: Function, op: Op, in_entry: bool) -> None:
        if isinstance(op.attrs, Elementwise | Transpose | Cast):
            result = op.results[0]
            names = set(function.types[result].names)
            tensors = [value for value in op.operands if function.types[value].dims]
            if names and all(set(function.types[value].names) == names for value in tensors):
                for value in tensors:
                    self._join((function.name, result), (function.name, value))
        elif isinstance(op.attrs, MOVES):
            self._join((function.name, op.results[0]), (function.name, op.operands[0]))
        elif isinstance(op.attrs, Scan) and not op.attrs.over.startswith(CHUNKS):
            # Chunks share a parameter that is gathered once, and add up a gradient in open form.
            for link in self._scan_links(function, op, op.attrs):
                if in_entry:
                    self._links.append(link)
                else:
                    self._join(link.outer, link.inner)

    def _scan_links(self, function: Function, op: Op, attrs: Scan) -> Iterator[Link]:
        """Operands with the body's inputs, results with the body's; carries are joined round."""
        body = self._functions[attrs.function]
        for number, value in enumerate(op.results):
            inner = body.results[number]
            if body.types[inner].dims:
                yield Link((function.name, value), (body.name, inner), True)
                if number < attrs.carries:
                    self._join((function.name, value), (function.name, op.operands[number]))
                    self._join((body.name, inner), (body.name, number))
        for number, value in enumerate(op.operands[attrs.carries :], attrs.carries):
            if body.types[number].dims:
                yield Link((function.name, value), (body.name, number), False)

    def _root_entry(
        self, entry: Function, parameters: Sequence[Parameter], owners: dict[Key, Parameter]
    ) -> None:
        """Name the classes of an entry's parameters, states, and outputs called after them."""
        named: list[tuple[str, int]] = [
            (given.name, number)
            for number, given in enumerate(entry.inputs)
            if given.role in ("param", "state")
        ]
        named += zip(entry.outputs, entry.results, strict=True)
        for name, value in named:
            owner = owner_of(name, parameters)
            names = entry.types[value].names
            if owner is not None and names and set(names) <= set(owner.type.names):
                owners.setdefault(self._root((entry.name, value)), owner)


def owner_of(name: str, parameters: Sequence[Parameter]) -> Parameter | None:
    """The parameter that a parameter, state or gradient of this name belongs to.

    States are called after their parameter, `body.attn.wq#m`, and gradients `grad.body.attn.wq`.
    """
    found: Parameter | None = None
    for parameter in parameters:
        own = parameter.name
        apart = any(
            name.startswith(f"{own}{mark}") or name.endswith(f"{mark}{own}") for mark in ".#/:"
        )
        if (name == own or apart) and (found is None or len(own) > len(found.name)):
            found = parameter
    return found


def stored_axes(name: str, kind: Type, parameters: Sequence[Parameter], layout: Layout) -> Axes:
    """How a param or state input is stored: as its parameter is."""
    owner = owner_of(name, parameters)
    if owner is None:
        return layout.axes(kind.names)
    return layout.stored_axes(owner.name, owner.type.names)
