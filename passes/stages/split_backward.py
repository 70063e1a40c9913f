"""Backward work in two: what other stages wait for (I), and what can wait (W).

    backward: %1, %2 = scan{function=layer.backward, carries=1, slices=3, reverse=true}(...)
    ->
    inputs:   %1, %2 = scan{function=layer.backward.inputs, carries=1, slices=2, ...}(...)
    weights:  %1 = scan{function=layer.backward.weights, carries=0, slices=3, ...}(...)

W makes the gradients of the layers' weights and nothing else, so that it depends on no other stage
(zero-bubble pipelines, Qi et al. 2023). It gets from I the gradients that arrive at each product;
elementwise work on saved values is done again. What stands outside of the stacks, such as the head
with its large gradient of logits, stays in I whole.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from msgspec import structs

from fllmc.ir.build import Builder
from fllmc.ir.ops import Elementwise, Fill, Scan, Signature
from fllmc.ir.ops.structure import stack_of
from fllmc.ir.program import Function, Op
from fllmc.ir.timetable import Kind
from fllmc.ir.types import Sizes
from fllmc.ir.walk import host_values
from fllmc.passes.stages.cut_body import StageWork


class Halves(NamedTuple):
    """A scan's body in two.

    `late` are the positions of the results that `weights` gives, `crossing` the values that
    `inputs` gives to it, `taken` the inputs of the whole body that `weights` takes, all of the
    whole body.
    """

    inputs: Function
    weights: Function
    late: tuple[int, ...]
    crossing: tuple[int, ...]
    taken: tuple[int, ...]


class Splitter:
    """Splits the backward functions of stages; `made` collects the bodies by name."""

    def __init__(self, functions: Mapping[str, Function], sizes: Sizes, carries: Collection[str]):
        self.functions = dict(functions)
        self.made: dict[str, Function] = {}
        self.sizes, self.carries = sizes, carries

    def split(self, work: StageWork) -> StageWork:
        """The stage with I and W instead of B, where there is something for W to do."""
        backward = work.functions.get("B")
        if backward is None:
            return work
        halves = {
            at: found
            for at, op in enumerate(backward.ops)
            if isinstance(op.attrs, Scan) and (found := self.halves(backward, op, op.attrs))
        }
        if not halves:
            return work
        forward = work.functions.get("F")
        names = [*(forward.outputs if forward else ()), *backward.outputs]
        count = sum(name.startswith("kept") for name in names)
        whole = Whole(self, backward, halves, count)
        functions: dict[Kind, Function] = {k: f for k, f in work.functions.items() if k != "B"}
        functions |= {"I": whole.inputs(), "W": whole.weights()}
        return StageWork(functions, work.takes, work.gives, work.stretches)

    def signatures(self) -> dict[str, Signature]:
        """All functions' signatures."""
        return {name: f.signature for name, f in {**self.functions, **self.made}.items()}

    def halves(self, function: Function, op: Op, attrs: Scan) -> Halves | None:
        """A scan's body in two, or None where no result can wait."""
        used = {v for other in function.ops for v in other.operands}
        named = dict(zip(function.results, function.outputs, strict=True))
        late = tuple(
            n
            for n, value in enumerate(op.results)
            if n >= attrs.carries and named.get(value) in self.carries and value not in used
        )
        if not late:
            return None
        body = self.functions[attrs.function]
        early = [n for n in range(len(body.results)) if n not in late]
        first = ancestors(body, [body.results[n] for n in early])
        again = repeatable(body, attrs.carries)
        needed = needed_late(body, [body.results[n] for n in late], first, again)
        makers = {v: at for at, other in enumerate(body.ops) for v in other.results}
        crossing = tuple(
            v
            for v in sorted(needed)
            if (
                v < attrs.carries
                if v not in makers
                else makers[v] in first and makers[v] not in again
            )
        )
        taken = tuple(v for v in sorted(needed) if v not in makers and v >= attrs.carries)
        inputs = self.keep(early_body(body, self, first, early, crossing))
        weights = self.keep(late_body(body, self, needed, late, crossing, taken))
        return Halves(inputs, weights, late, crossing, taken)

    def keep(self, function: Function) -> Function:
        """The function under a name of its own; one that is there already is taken."""
        name, count = function.name, 1
        known = {**self.functions, **self.made}
        while name in known and known[name] != structs.replace(function, name=name):
            count += 1
            name = f"{function.name}.{count}"
        self.made[name] = structs.replace(function, name=name)
        return self.made[name]


def ancestors(function: Function, values: Sequence[int]) -> set[int]:
    """The ops that some values need."""
    wanted, found = set(values), set[int]()
    for at in reversed(range(len(function.ops))):
        if wanted.intersection(function.ops[at].results):
            found.add(at)
            wanted.update(function.ops[at].operands)
    return found


def repeatable(function: Function, carries: int) -> set[int]:
    """Cheap ops that do not depend on the carries: W does them again, so nothing is kept."""
    fixed, found = set(range(carries)), set[int]()
    host = host_values(function)
    for at, op in enumerate(function.ops):
        cheap = isinstance(op.attrs, Elementwise | Fill) or host.issuperset(op.results)
        if cheap and not fixed.intersection(op.operands):
            found.add(at)
        else:
            fixed.update(op.results)
    return found


def needed_late(
    function: Function, values: Sequence[int], first: Collection[int], again: Collection[int]
) -> set[int]:
    """The values that late results need, back to inputs and to what is done before."""
    found = set(values)
    for at in reversed(range(len(function.ops))):
        op = function.ops[at]
        if found.intersection(op.results) and (at not in first or at in again):
            found.update(op.operands)
    return found


def early_body(
    body: Function,
    splitter: Splitter,
    first: Collection[int],
    early: Sequence[int],
    crossing: Sequence[int],
) -> Function:
    """The body less the late results, with what they need. It takes all the inputs it uses."""
    b = Builder(f"{body.name}.inputs", splitter.sizes, splitter.signatures())
    mapping: dict[int, int] = {}
    for number, given in enumerate(body.inputs):
        mapping[number] = b.input(given.name, body.types[number], given.role)
    for at, op in enumerate(body.ops):
        if at in first:
            b.path, b.span = op.path, op.span
            mapping.update(
                zip(op.results, b.emit(op.attrs, *(mapping[v] for v in op.operands)), strict=True)
            )
    outputs = [body.outputs[n] for n in early] + [f"late{n}" for n in range(len(crossing))]
    results = [mapping[body.results[n]] for n in early] + [mapping[v] for v in crossing]
    return b.finish(results, outputs, body.span)


def late_body(
    body: Function,
    splitter: Splitter,
    needed: Collection[int],
    late: Sequence[int],
    crossing: Sequence[int],
    taken: Sequence[int],
) -> Function:
    """The late results from what crosses and the body's own inputs, in this order."""
    b = Builder(f"{body.name}.weights", splitter.sizes, splitter.signatures())
    mapping = {v: b.input(f"late{n}", body.types[v]) for n, v in enumerate(crossing)}
    for value in taken:
        given = body.inputs[value]
        mapping[value] = b.input(given.name, body.types[value], given.role)
    for op in body.ops:
        if op.results[0] in needed and op.results[0] not in mapping:
            b.path, b.span = op.path, op.span
            mapping.update(
                zip(op.results, b.emit(op.attrs, *(mapping[v] for v in op.operands)), strict=True)
            )
    results = [mapping[body.results[n]] for n in late]
    return b.finish(results, [body.outputs[n] for n in late], body.span)


class Whole:
    """A stage's backward function with its scans in halves; `count` values are kept already."""

    def __init__(
        self, splitter: Splitter, function: Function, halves: Mapping[int, Halves], count: int
    ):
        self.splitter, self.function, self.halves, self.count = splitter, function, halves, count
        self.kept: dict[tuple[int, int], str] = {}
        for at, half in halves.items():
            for value in half.crossing:
                self.kept[at, value] = f"kept{count + len(self.kept)}"
        self.operands: dict[int, str] = {}
        made = {v for op in function.ops for v in op.results}
        self.makers = {v: at for at, op in enumerate(function.ops) for v in op.results}
        for at, half in halves.items():
            for value in half.taken:
                operand = function.ops[at].operands[value]
                if operand in made and not self.from_weights(operand):
                    name = f"kept{count + len(self.kept) + len(self.operands)}"
                    self.operands.setdefault(operand, name)

    def from_weights(self, value: int) -> bool:
        """Whether a value comes of parameters alone, so that W makes it again."""
        at = self.makers.get(value)
        if at is None:
            return self.function.inputs[value].role in ("param", "host")
        return all(self.from_weights(operand) for operand in self.function.ops[at].operands)

    def builder(self) -> Builder:
        """A builder that knows all functions."""
        return Builder("", self.splitter.sizes, self.splitter.signatures())

    def inputs(self) -> Function:
        """The function without the weights' gradients."""
        b, function = self.builder(), self.function
        late = {function.ops[at].results[n] for at, half in self.halves.items() for n in half.late}
        kept = [
            (n, v) for n, v in zip(function.outputs, function.results, strict=True) if v not in late
        ]
        ends = [v for _, v in kept] + [v for at in self.halves for v in function.ops[at].operands]
        used = ancestors(function, ends) | set(self.halves)
        taken = {v for at in used for v in function.ops[at].operands} | {v for _, v in kept}
        mapping: dict[int, int] = {}
        crossed: dict[str, int] = {}
        for number, given in enumerate(function.inputs):
            if number in taken:
                mapping[number] = b.input(given.name, function.types[number], given.role)
        for at in sorted(used):
            op = function.ops[at]
            b.path, b.span = op.path, op.span
            attrs, half = op.attrs, self.halves.get(at)
            operands = [mapping[v] for v in op.operands]
            if half is None or not isinstance(attrs, Scan):
                mapping.update(zip(op.results, b.emit(attrs, *operands), strict=True))
                continue
            results = b.emit(structs.replace(attrs, function=half.inputs.name), *operands)
            early = [v for n, v in enumerate(op.results) if n not in half.late]
            mapping.update(zip(early, results, strict=False))
            names = [self.kept[at, value] for value in half.crossing]
            crossed.update(zip(names, results[len(early) :], strict=True))
        outputs = {name: mapping[v] for name, v in kept} | crossed
        outputs |= {name: mapping[v] for v, name in self.operands.items()}
        return b.finish(list(outputs.values()), list(outputs), function.span)

    def weights(self) -> Function:
        """The weights' gradients."""
        b, function = self.builder(), self.function
        mapping: dict[int, int] = {}
        outputs: dict[str, int] = {}
        names = dict(zip(function.results, function.outputs, strict=True))

        def get(value: int) -> int:
            if value not in mapping:
                at = self.makers.get(value)
                if value in self.operands:
                    mapping[value] = b.input(self.operands[value], function.types[value])
                elif at is None:
                    given = function.inputs[value]
                    mapping[value] = b.input(given.name, function.types[value], given.role)
                else:
                    op = function.ops[at]
                    operands = [get(operand) for operand in op.operands]
                    mapping.update(zip(op.results, b.emit(op.attrs, *operands), strict=True))
            return mapping[value]

        for at, half in self.halves.items():
            op = function.ops[at]
            assert isinstance(op.attrs, Scan)
            scan = op.attrs
            b.path, b.span = op.path, op.span
            body = half.inputs
            early = len(op.results) - len(half.late)
            stacked = [
                b.input(self.kept[at, v], stack_of(body.types[body.results[early + n]], scan.over))
                for n, v in enumerate(half.crossing)
            ]
            stop = scan.carries + scan.slices
            slices = [get(op.operands[v]) for v in half.taken if v < stop]
            shared = [get(op.operands[v]) for v in half.taken if v >= stop]
            attrs = Scan(half.weights.name, scan.over, 0, len(stacked) + len(slices), scan.reverse)
            results = b.emit(attrs, *stacked, *slices, *shared)
            for n, value in zip(half.late, results, strict=True):
                outputs[names[op.results[n]]] = value
        return b.finish(list(outputs.values()), list(outputs), function.span)
