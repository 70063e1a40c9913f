"""Values that share storage."""

from __future__ import annotations

from fllmc.ir.ops import Rename, Share, Stop, Wait
from fllmc.ir.program import Function
from fllmc.ir.walk import waits


class Classes:
    """Values that share storage, with the ops at which a class is first written and last used.

    An input counts as written at -1, a result as used after the last op. At first each value shares
    with its aliases alone: what `rename` and `stop` give is their operand's storage. What a started
    op takes is in use until that is waited for; `read` is where an op last takes the class.
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
        self.read = list(self.last)
        self.until: dict[int, int] = {}
        for end, start in waits(function).items():
            self.until[start] = end
            for value in function.ops[start].operands:
                self.last[value] = max(self.last[value], end)
        for op in function.ops:
            if isinstance(op.attrs, Rename | Share | Stop | Wait):
                for old, new in zip(op.operands, op.results, strict=True):
                    self.join(old, new)

    def ends(self, value: int, at: int) -> bool:
        """Whether the op at that position is the last to use the class of a value."""
        root = self.find(value)
        return self.read[root] == at and self.last[root] == self.until.get(at, at)

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
            self.read[a] = max(self.read[a], self.read[b])
