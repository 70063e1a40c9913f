"""What of one micro-batch's work belongs where: forward or backward, and between which stacks.

An op is forward if the forward results depend on it, else backward. Ops that no micro-batch's data
with parameters lead to, such as casts of weights, are free: every stage that needs one has it.
Others live in a group, between two stacks; those on values stacked over layers live on every stage
that has layers.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Literal, NamedTuple

from fllmc.ir.diagnostics import DiagnosticError, InternalError
from fllmc.ir.ops import (
    Add,
    AddN,
    AllGather,
    AllReduce,
    AllToAll,
    Cast,
    LocalSlice,
    Neg,
    ReduceScatter,
    Rename,
    Scan,
    Transpose,
)
from fllmc.ir.program import Function, Op
from fllmc.ir.span import NOWHERE, Span
from fllmc.passes.stages.errors import SharedDim

Phase = Literal["F", "B"]
LINEAR = (AllGather, AllReduce, AllToAll, Cast, LocalSlice, Neg, ReduceScatter, Rename, Transpose)
"""Ops through which a sum goes term by term."""


class Spot(NamedTuple):
    """Where an op lives: in one phase, in one group; or on all stages with layers (`stacked`).

    A `free` op has no phase and no group of its own. `stack` is the number of a cut scan's stack,
    else -1.
    """

    free: bool
    phase: Phase
    group: int
    stacked: bool
    stack: int


class Term(NamedTuple):
    """A term of a gradient's sum: a value, and the linear ops it goes through, first to last."""

    value: int
    through: tuple[int, ...]


class Body:
    """One micro-batch's function, with the place of each op.

    `forward` names its forward results, `data` the inputs that belong to the micro-batch, `dims`
    the dims of the stacks that are cut, `span` the directive that asks for it.
    """

    def __init__(
        self,
        function: Function,
        forward: Collection[str],
        data: Collection[int],
        dims: Collection[str],
        span: Span = NOWHERE,
    ):
        self.function = function
        self.dims = dims
        self.span = span
        self.makers = {v: at for at, op in enumerate(function.ops) for v in op.results}
        self.data = _followers(function, data)
        params = [n for n, given in enumerate(function.inputs) if given.role == "param"]
        self.weights = _followers(function, params)
        wanted = [
            value
            for value, name in zip(function.results, function.outputs, strict=True)
            if name in forward
        ]
        self.ahead = self._ancestors(wanted)
        self.scans = [at for at in self._cut_scans() if at in self.ahead]
        self.back = [at for at in self._cut_scans() if at not in self.ahead][::-1]
        self._check()
        self.spots: list[Spot] = []
        for at in range(len(function.ops)):
            self.spots.append(self._spot(at))

    def stacked(self, value: int) -> bool:
        """Whether a value has a position for each layer of a cut stack."""
        return self.function.types[value].names[:1] in [(dim,) for dim in self.dims]

    def stack(self, at: int) -> int:
        """The number of the stack that a cut scan runs over, or -1 for another op."""
        if at in self.scans:
            return self.scans.index(at)
        if at in self.back:
            return len(self.scans) - len(self.back) + self.back.index(at)
        return -1

    def terms(self, value: int) -> list[Term]:
        """The terms of a sum that live in different groups; the value itself if they do not."""
        found = self._expanded(value)
        return found if len(self._groups(found)) > 1 else [Term(value, ())]

    def _expanded(self, value: int) -> list[Term]:
        at = self.makers.get(value)
        if at is None or self.spots[at].stack >= 0:
            return [Term(value, ())]
        op = self.function.ops[at]
        if isinstance(op.attrs, Add | AddN) and self._alike(op):
            return [term for operand in op.operands for term in self._expanded(operand)]
        if isinstance(op.attrs, LINEAR):
            inner = self._expanded(op.operands[0])
            return [Term(term.value, (*term.through, at)) for term in inner]
        return [Term(value, ())]

    def _groups(self, found: Sequence[Term]) -> set[tuple[str, int]]:
        spots = [self.spots[self.makers[t.value]] for t in found if t.value in self.makers]
        return {(spot.phase, self.result_group(spot)) for spot in spots if not spot.free}

    def result_group(self, spot: Spot) -> int:
        """The group in which a carry that a scan gives counts as made, or the op's own."""
        if spot.stack < 0:
            return spot.group
        return spot.stack + 1 if spot.phase == "F" else spot.stack

    def _alike(self, op: Op) -> bool:
        types = self.function.types
        return all(types[value] == types[op.results[0]] for value in op.operands)

    def _ancestors(self, values: Sequence[int]) -> set[int]:
        needed, found = set(values), set[int]()
        for at in reversed(range(len(self.function.ops))):
            op = self.function.ops[at]
            if needed.intersection(op.results):
                found.add(at)
                needed.update(op.operands)
        return found

    def _cut_scans(self) -> list[int]:
        ops = enumerate(self.function.ops)
        return [at for at, op in ops if isinstance(op.attrs, Scan) and op.attrs.over in self.dims]

    def _check(self) -> None:
        """DiagnosticError where two stacks run over one dim, forward.

        InternalError where stacks do not stand in the order that is understood.
        """
        name = self.function.name
        over = [scan_attrs(self.function.ops[at]).over for at in self.scans]
        twice = sorted({dim for dim in over if over.count(dim) > 1})
        if twice:
            raise DiagnosticError(SharedDim(self.span, twice[0]))
        below = len(self.scans) - len(self.back)
        back = [scan_attrs(self.function.ops[at]).over for at in self.back]
        if back != over[below:]:
            raise InternalError(f"{name}: scans run forward over {over}, back over {back}")

    def _spot(self, at: int) -> Spot:
        op = self.function.ops[at]
        phase: Phase = "F" if at in self.ahead else "B"
        stack = self.stack(at)
        if stack >= 0:
            return Spot(False, phase, stack, False, stack)
        made = [self.spots[self.makers[v]] for v in op.operands if v in self.makers]
        if any(self.stacked(value) for value in (*op.operands, *op.results)):
            if not all(self.stacked(value) for value in op.results):
                raise InternalError(f"{self.function.name}: {op.kind} takes layers together")
            free = all(spot.free for spot in made)
            return Spot(free, phase, -1, True, -1)
        behind = [self.result_group(s) for s in made if not s.free and s.phase == "F"]
        back = [self.result_group(s) for s in made if not s.free and s.phase == "B"]
        if back:
            return Spot(False, "B", min(back), False, -1)
        if behind:
            return Spot(False, phase, max(behind), False, -1)
        heavy = phase == "F" and op.results[0] in self.data and op.results[0] in self.weights
        return Spot(not heavy, phase, 0, False, -1)


def scan_attrs(op: Op) -> Scan:
    """The attributes of an op that is a scan."""
    assert isinstance(op.attrs, Scan)
    return op.attrs


def _followers(function: Function, inputs: Collection[int]) -> set[int]:
    """The values that depend on some of these inputs."""
    found = set(inputs)
    for op in function.ops:
        if found.intersection(op.operands):
            found.update(op.results)
    return found
