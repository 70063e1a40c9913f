"""One straight-line function run backward: its ops in reverse, each by its gradient rule.

What comes out is a draft: a function whose inputs are the values that the rules asked for, taken
note of in the order of asking. `passes/differentiate.py` decides how each of them gets there.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeAlias

from fllmc.ir.build import Builder
from fllmc.ir.ops import Add, AddN, Cast, Dequantize, Fill, Iota, Put, Rename, Scan, Transpose
from fllmc.ir.ops.structure import stack_of
from fllmc.ir.program import Function, Op, Role
from fllmc.ir.types import Sizes, Type
from fllmc.ir.walk import host_values
from fllmc.passes.gradient_site import Site, ordered, written_out, zero
from fllmc.passes.gradients import nothing, rule_of


class Saved(NamedTuple):
    """A forward value that the backward function takes.

    It is value number `value` of the function; or, where `scan` is the position of a scan among its
    ops, number `value` among the further values that this scan is to stack.
    """

    value: int
    scan: int = -1


class Cotangent(NamedTuple):
    """The cotangent of a result, by its position, that the backward function is given."""

    result: int


OTHER_FORMS = (Cast, Dequantize, Rename, Transpose)
"""Ops that give a parameter in another form."""

Key: TypeAlias = "Saved | Cotangent"


class Stacked(NamedTuple):
    """The function that a scan is to run forward, and the values of the body that it adds."""

    function: str
    saved: tuple[Saved, ...]


class Draft(NamedTuple):
    """A function run backward: input i is `keys[i]`, result i the gradient to `gradients[i]`.

    `stacks` holds, by position among the forward ops, what its scans are to run instead.
    """

    function: Function
    keys: tuple[Key, ...]
    gradients: tuple[int, ...]
    stacks: Mapping[int, Stacked]


class Body(NamedTuple):
    """A scan's body run forward and backward.

    `carries` are the forward carries whose cotangents the backward scan carries, `shared` the
    shared inputs whose gradients it sums, `slices` the sliced inputs whose gradients it stacks, all
    by position among the forward body's inputs. `keys` are what it takes beside carries: first
    `sliced` of them by slices, the others shared; a `Saved` speaks of the forward body.
    """

    forward: Stacked
    backward: Function
    carries: tuple[int, ...]
    shared: tuple[int, ...]
    slices: tuple[int, ...]
    keys: tuple[Key, ...]
    sliced: int


class Bodies(ABC):
    """What makes the bodies of scans, and knows all functions."""

    functions: dict[str, Function]
    sizes: Sizes

    def active(self, function: Function, inputs: set[int]) -> set[int]:
        """The values that depend on these inputs by ops that gradients flow through."""
        found = set(inputs)
        for op in function.ops:
            if isinstance(op.attrs, Scan):
                found |= self._active_results(op, op.attrs, found)
            elif rule_of(op) is not nothing and found.intersection(op.operands):
                found.update(v for v in op.results if function.types[v].is_float)
        return found

    def active_inputs(self, op: Op, attrs: Scan, active: set[int]) -> set[int]:
        """The inputs of a scan's body that are active in some run of it."""
        body = self.functions[attrs.function]
        found = {position for position, value in enumerate(op.operands) if value in active}
        while True:
            inside = self.active(body, found)
            carried = {c for c in range(attrs.carries) if body.results[c] in inside}
            if carried <= found:
                return found
            found |= carried

    def _active_results(self, op: Op, attrs: Scan, active: set[int]) -> set[int]:
        body = self.functions[attrs.function]
        inputs = self.active_inputs(op, attrs, active)
        inside = self.active(body, inputs)
        carried = {op.results[c] for c in range(attrs.carries) if c in inputs}
        return carried | {
            op.results[at] for at, value in enumerate(body.results) if value in inside
        }

    @abstractmethod
    def body(self, op: Op, attrs: Scan, active: set[int], given: frozenset[int]) -> Body:
        """A scan's body for the active operands and results with a cotangent."""


class Reverse:
    """A function on its way back. Cotangents are only gathered for active values."""

    def __init__(self, function: Function, active: set[int], bodies: Bodies) -> None:
        self.function = function
        self.active = active
        self.bodies = bodies
        signatures = {name: f.signature for name, f in bodies.functions.items()}
        self.b = Builder(function.name, bodies.sizes, signatures)
        self.keys: dict[Key, int] = {}
        self.stacks: dict[int, Stacked] = {}
        self._host = host_values(function)
        self._makers = {value: op for op in function.ops for value in op.results}
        self._again: dict[int, int] = {}
        self._found: dict[int, list[int]] = {}

    def run(self, given: Sequence[int]) -> Draft:
        """The draft for cotangents of these results."""
        for position in given:
            value = self.function.results[position]
            if value in self.active:
                self.push(value, self.key(Cotangent(position), self.function.types[value]))
        for at in reversed(range(len(self.function.ops))):
            op = self.function.ops[at]
            self.b.path, self.b.span = op.path, op.span
            if not any(self._found.get(value) for value in op.results):
                continue
            if isinstance(op.attrs, Scan):
                self._scan(at, op, op.attrs)
            else:
                self._op(op)
        return self._draft()

    def _draft(self) -> Draft:
        gradients = tuple(n for n in range(len(self.function.inputs)) if self._found.get(n))
        results: list[int] = []
        for number in gradients:
            given = self.function.inputs[number]
            self.b.path = given.name if given.role == "param" else ""
            found = self.total(number)
            assert found is not None
            results.append(found)
        names = [f"grad.{self.function.inputs[number].name}" for number in gradients]
        draft = self.b.finish(results, names, self.function.span)
        return Draft(draft, tuple(self.keys), gradients, self.stacks)

    def key(self, key: Key, kind: Type, role: Role = "value") -> int:
        """The input that stands for a key, added on first use."""
        if key not in self.keys:
            self.keys[key] = self.b.input(f"v{len(self.keys)}", kind, role)
        return self.keys[key]

    def saved(self, value: int) -> int:
        """A value of the forward function. What costs nothing to make is made again."""
        maker = self._makers.get(value)
        if maker is None or not self.made_again(value, maker):
            role: Role = "host" if value in self._host else "value"
            return self.key(Saved(value), self.function.types[value], role)
        if value not in self._again:
            operands = [self.saved(operand) for operand in maker.operands]
            self._again[value] = self.b.one(maker.attrs, *operands)
        return self._again[value]

    def made_again(self, value: int, maker: Op) -> bool:
        """Whether a value costs nothing to make, or is a frozen parameter in another form.

        To keep that would be to keep a copy of what is stored as it is.
        """
        if value in self._host or isinstance(maker.attrs, Fill | Iota):
            return True
        if self._puts_rows(maker):
            return self._is_parameter(value)
        return (
            isinstance(maker.attrs, OTHER_FORMS)
            and value not in self.active
            and all(self._is_parameter(operand) for operand in maker.operands)
        )

    def _is_parameter(self, value: int) -> bool:
        if value < len(self.function.inputs):
            return self.function.inputs[value].role == "param"
        maker = self._makers[value]
        if isinstance(maker.attrs, Iota):
            return True
        same = isinstance(maker.attrs, OTHER_FORMS) or self._puts_rows(maker)
        return same and all(map(self._is_parameter, maker.operands))

    def _puts_rows(self, maker: Op) -> bool:
        """Whether the op puts rows at their places, or adds such rows: the parts of a parameter."""
        put = self._makers.get(maker.operands[-1]) if isinstance(maker.attrs, Add) else maker
        return put is not None and isinstance(put.attrs, Put)

    def push(self, value: int, cotangent: int | None) -> None:
        """Add to the cotangent of a value, if it is active."""
        if cotangent is None or value not in self.active:
            return
        kind = self.function.types[value]
        found = self.b.cast(cotangent, kind.dtype)
        self._found.setdefault(value, []).append(ordered(self.b, found, kind))

    def total(self, value: int) -> int | None:
        """The whole cotangent of a value, once all its uses have been gone through."""
        found = self._found.get(value, [])
        if len(found) > 1:
            total = self.b.one(Add() if len(found) == 2 else AddN(), *found)
            found[:] = [ordered(self.b, total, self.function.types[value])]
        return found[0] if found else None

    def _op(self, op: Op) -> None:
        cotangents = [self.total(value) for value in op.results]
        site = Site(self.b, op, self.function.types, self.saved, cotangents)
        rule = rule_of(op)
        for position, value in enumerate(op.operands):
            if value in self.active:
                self.push(value, rule(site, op.attrs, position))

    def _scan(self, at: int, op: Op, attrs: Scan) -> None:
        """A scan in the other direction over the body run backward."""
        cotangents = [self.total(value) for value in op.results]
        given = frozenset(n for n, found in enumerate(cotangents) if found is not None)
        body = self.bodies.body(op, attrs, self.active, given)
        self.stacks[at] = body.forward
        types, b = self.function.types, self.b
        carries = [self._whole(cotangents[c], types[op.results[c]]) for c in body.carries]
        carries += [zero(b, types[op.operands[position]]) for position in body.shared]
        others = [self._handed(at, op, attrs, body, cotangents, key) for key in body.keys]
        b.functions[body.backward.name] = body.backward.signature
        back = Scan(
            body.backward.name, attrs.over, len(carries), body.sliced, reverse=not attrs.reverse
        )
        results = b.emit(back, *carries, *others)
        for position, result in zip(
            (*body.carries, *body.shared, *body.slices), results, strict=True
        ):
            self.push(op.operands[position], result)

    def _handed(
        self,
        at: int,
        op: Op,
        attrs: Scan,
        body: Body,
        cotangents: Sequence[int | None],
        key: Key,
    ) -> int:
        """What the backward scan is given for a key of its body."""
        if isinstance(key, Cotangent):
            return self._whole(cotangents[key.result], self.function.types[op.results[key.result]])
        inner = self.bodies.functions[attrs.function]
        if key not in body.forward.saved:
            if attrs.carries <= key.value < len(inner.inputs) and key.scan < 0:
                return self.saved(op.operands[key.value])
            return self.saved(op.results[inner.results.index(key.value, attrs.carries)])
        forward = self.bodies.functions[body.forward.function]
        position = len(inner.results) + body.forward.saved.index(key)
        kind = forward.types[forward.results[position]]
        return self.key(Saved(position - len(inner.results), at), stack_of(kind, attrs.over))

    def _whole(self, cotangent: int | None, kind: Type) -> int:
        """A cotangent with all dims of its value; zeros where there is none."""
        return zero(self.b, kind) if cotangent is None else written_out(self.b, cotangent, kind)
