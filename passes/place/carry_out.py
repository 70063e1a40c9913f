"""A placed function written anew, with its ops done as chosen and the moves that go with that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.diagnostics import InternalError
from fllmc.ir.ops import AddN, Fill, Signature
from fllmc.ir.program import Function, Op
from fllmc.ir.span import Span
from fllmc.ir.types import Sizes, Type
from fllmc.passes.place.choices import Move
from fllmc.passes.place.options import Way
from fllmc.passes.place.reading import Reading


class Writer:
    """The function being written.

    `forms` has the number of each form that a root has so far, `terms` what is added to a sum in
    each form. `moves` has the move that makes a form, with the form before; of a sum the move that
    leads on from a form, with the form after.
    """

    def __init__(
        self,
        reading: Reading,
        moves: Mapping[int, Mapping[Type, tuple[Type, Move]]],
        sizes: Sizes,
        signatures: Mapping[str, Signature],
    ) -> None:
        self.reading = reading
        self.moves = moves
        self.build = Builder(reading.function.name, sizes, signatures)
        self.forms: dict[tuple[int, Type], int] = {}
        self.terms: dict[tuple[int, Type], list[int]] = {}
        self.marks: dict[tuple[int, Type], tuple[str, Span]] = {}
        for root, found in reading.moves.items():
            for op in found:
                kind = reading.types[op.results[0]]
                self.marks[root, kind] = op.path, op.span

    def write(self, ways: Sequence[Way]) -> Function:
        """The function whose ops are done so."""
        function = self.reading.function
        for number, given in enumerate(function.inputs):
            kind = function.types[number]
            self.forms[number, kind] = self.build.input(given.name, kind, given.role)
        for op, way in zip(self.reading.ops, ways, strict=True):
            self._add(op, way)
        results = [self.have(value, function.types[value]) for value in function.results]
        return self.build.finish(results, function.outputs, function.span)

    def _add(self, op: Op, way: Way) -> None:
        if self.reading.term(op):
            self.terms.setdefault((op.operands[1], way.takes[1]), []).append(op.operands[0])
            return
        if self.reading.total(op):
            number = self._total(op, op.results[0], way.gives[0])
            self.forms[self.reading.roots[op.results[1]], way.gives[1]] = number
            return
        self._mark(op.path, op.span)
        operands = [
            self.have(value, kind) for value, kind in zip(op.operands, way.takes, strict=True)
        ]
        self._mark(op.path, op.span)
        made = self.build.emit(op.attrs, *operands)
        for value, kind, number in zip(op.results, way.gives, made, strict=True):
            self.forms[self.reading.roots[value], kind] = number

    def _total(self, op: Op, root: int, kind: Type) -> int:
        """A sum in a form: of the terms that are added in it, and of sums that are moved to it."""
        self._mark(op.path, op.span)
        parts = [self.have(value, kind) for value in self.terms.get((root, kind), ())]
        for begin, (end, move) in self.moves[root].items():
            if end == kind:
                number = self._total(op, root, begin)
                self._mark(*self.marks.get((root, kind), (op.path, op.span)))
                parts.append(self.build.one(move.attrs, number))
        self._mark(op.path, op.span)
        return parts[0] if len(parts) == 1 else self.build.one(AddN(), *parts)

    def _mark(self, path: str, span: Span) -> None:
        self.build.path, self.build.span = path, span

    def have(self, value: int, kind: Type) -> int:
        """A value in a form, made by the moves that lead there if it isn't there yet."""
        root = self.reading.roots[value]
        if (root, kind) in self.forms:
            return self.forms[root, kind]
        outer = self.build.path, self.build.span
        if root in self.reading.fills:
            number = self._fill(self.reading.fills[root], kind)
        else:
            number = self._move(root, kind, outer)
        self._mark(*outer)
        self.forms[root, kind] = number
        return number

    def _move(self, root: int, kind: Type, at: tuple[str, Span]) -> int:
        """The move that makes the form, under the path that it has by the rules if it is one."""
        found = self.moves.get(root, {}).get(kind)
        if found is None:
            raise InternalError(f"{self.reading.function.name}: nothing makes {kind} of %{root}")
        begin, move = found
        number = self.have(root, begin)
        self._mark(*self.marks.get((root, kind), at))
        return self.build.one(move.attrs, number)

    def _fill(self, op: Op, kind: Type) -> int:
        """The constant in a type."""
        attrs = op.attrs
        assert isinstance(attrs, Fill)
        self._mark(op.path, op.span)
        return self.build.one(structs.replace(attrs, dims=kind.dims, partial=kind.partial))
