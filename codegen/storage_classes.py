"""Values that share storage."""

from __future__ import annotations

from fllmc.ir.ops import Rename, Share, Stop
from fllmc.ir.program import Function


class Classes:
    """Values that share storage, with the ops at which a class is first written and last used.

    An input counts as written at -1, a result as used after the last op. At first each value shares
    with its aliases alone: what `rename` and `stop` give is their operand's storage.
    """

    def __init__(self, function: Function):
        self.parent = list(range(len(function.types)))
        self.first = [-1] * len(function.types)
        self.last = [-1] * len(function.types)
        for at, op in enumerate(function.ops):
            for value in op.results:
                self.first[value] = self.last[value] = at
            for value in op.operands:
                self.last[value] = at
        for value in function.results:
            self.last[value] = len(function.ops)
        for op in function.ops:
            if isinstance(op.attrs, Rename | Share | Stop):
                self.join(op.operands[0], op.results[0])

    def find(self, value: int) -> int:
        """The class of a value, named by one of its members."""
        while self.parent[value] != value:
            value = self.parent[value]
        return value

    def join(self, old: int, new: int) -> None:
        """Put `new` into the class of `old`."""
        a, b = self.find(old), self.find(new)
        if a != b:
            self.parent[b] = a
            self.first[a] = min(self.first[a], self.first[b])
            self.last[a] = max(self.last[a], self.last[b])
