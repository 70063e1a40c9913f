"""Which values belong to a parameter: its casts, gradients, accumulators, states and updates.

Values that elementwise ops join one to one (all operands and the result have the same dims) have to
be placed alike, so they form classes, across the functions that scans run. A class that contains a
parameter or a state of it is stored as the parameter is.
"""

from __future__ import annotations

from collections.abc import Sequence

from fllmc.ir.ops import Cast, Elementwise, Scan, Transpose
from fllmc.ir.program import Function, Op, Parameter, Program
from fllmc.ir.types import Type
from fllmc.passes.place.directives import Axes, Layout

Key = tuple[str, int]
"""A value: the function's name and the number in it."""


class Classes:
    """The values of parameters; `axes` is how a value of a parameter is stored."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self._parent: dict[Key, Key] = {}
        self._functions = {function.name: function for function in program.functions}
        for function in program.functions:
            for op in function.ops:
                self._join_op(function, op)
        self._found: dict[Key, Axes] = {}
        for name in program.entries:
            self._root_entry(self._functions[name], program.parameters, layout)

    def holds(self, function: str, value: int) -> bool:
        """Whether the value belongs to a parameter."""
        return self._root((function, value)) in self._found

    def axes(self, function: str, value: int) -> Axes | None:
        """The stored placement of the parameter that the value belongs to, if it does."""
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

    def _join_op(self, function: Function, op: Op) -> None:
        if isinstance(op.attrs, Elementwise | Transpose | Cast):
            result = op.results[0]
            names = set(function.types[result].names)
            tensors = [value for value in op.operands if function.types[value].dims]
            if names and all(set(function.types[value].names) == names for value in tensors):
                for value in tensors:
                    self._join((function.name, result), (function.name, value))
        elif isinstance(op.attrs, Scan):
            self._join_scan(function, op, op.attrs)

    def _join_scan(self, function: Function, op: Op, attrs: Scan) -> None:
        """Operands with the body's inputs, the body's results with the results, carries round."""
        body = self._functions[attrs.function]
        for number, value in enumerate(op.operands):
            if body.types[number].dims:
                self._join((function.name, value), (body.name, number))
        for number, value in enumerate(op.results):
            inner = body.results[number]
            if body.types[inner].dims:
                self._join((function.name, value), (body.name, inner))
                if number < attrs.carries:
                    self._join((function.name, value), (body.name, number))

    def _root_entry(self, entry: Function, parameters: Sequence[Parameter], layout: Layout) -> None:
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
                root = self._root((entry.name, value))
                axes = layout.stored_axes(owner.name, owner.type.names)
                self._found.setdefault(root, axes)


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
