"""The equations of an optimizer written out for one parameter.

Equations that mix elements are over the dims of `ir/matrices.py`, and each of these becomes the
dims of the parameter that it stands for, or none. Choices that the parameter's form decides are
made here: the other side is not computed, and states that then feed nothing but themselves are not
kept.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct, structs

from fllmc.ir import host_math
from fllmc.ir.build import Builder
from fllmc.ir.matrices import Matrix, equations_of, matrix_of, side
from fllmc.ir.ops import (
    Add,
    AnyAttrs,
    Div,
    Dot,
    Fill,
    Less,
    Mul,
    ReduceMax,
    ReduceSum,
    Rename,
    Sub,
    Where,
)
from fllmc.ir.program import Function, Op, Parameter, Program
from fllmc.ir.span import NOWHERE
from fllmc.ir.types import Type

STATES = "optimizer.states"


class Equations(Struct, frozen=True):
    """An optimizer's function for one parameter: its sides, and the numbers known of it."""

    function: Function
    matrix: Matrix
    numbers: Mapping[str, float]

    @property
    def makers(self) -> dict[int, Op]:
        """By value the op that makes it."""
        return {value: op for op in self.function.ops for value in op.results}

    @property
    def outputs(self) -> dict[str, int]:
        """`param` and the states that it depends on, with their new values."""
        function, makers = self.function, self.makers
        results = dict(zip(function.outputs, function.results, strict=True))
        found, todo = {"param"}, ["param"]
        while todo:
            for value in self.reached(results[todo.pop()], makers):
                if value < len(function.inputs):
                    name = function.inputs[value].name
                    if name in results and name not in found:
                        found.add(name)
                        todo.append(name)
        return {name: value for name, value in results.items() if name in found}

    def reached(self, value: int, makers: Mapping[int, Op]) -> set[int]:
        """The values that a value depends on, itself included."""
        found: set[int] = set()
        todo = [value]
        while todo:
            at = todo.pop()
            if at not in found:
                found.add(at)
                op = makers.get(at)
                todo += self.operands(op, makers) if op else ()
        return found

    def operands(self, op: Op, makers: Mapping[int, Op]) -> tuple[int, ...]:
        """An op's operands; of a choice that is known, what is chosen."""
        if isinstance(op.attrs, Where):
            truth = self.known(op.operands[0], makers)
            if truth is not None:
                return (op.operands[1 if truth else 2],)
        return op.operands

    def known(self, value: int, makers: Mapping[int, Op]) -> float | None:
        """The number that a value is for this parameter at every step, if it is one."""
        op = makers.get(value)
        if op is None:
            return self.numbers.get(self.function.inputs[value].name)
        if isinstance(op.attrs, Fill):
            return op.attrs.value
        given = [self.known(operand, makers) for operand in op.operands]
        values = [each for each in given if each is not None]
        if len(values) < 2 or len(values) < len(given):
            return None
        a, b = values[:2]
        match op.attrs:
            case Less():
                return float(a < b)
            case Add():
                return a + b
            case Sub():
                return a - b
            case Mul():
                return a * b
            case Div():
                return host_math.div(a, b)
            case _:
                return None

    def dims(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """The parameter's dims for those of the equations."""
        return tuple(dim for name in names for dim in self.matrix.sides[name])

    def of_parameter(self, attrs: AnyAttrs) -> AnyAttrs | None:
        """An op on the parameter's dims; None where nothing is left to do."""
        match attrs:
            case ReduceSum(dims) | ReduceMax(dims):
                named = self.dims(dims)
                return structs.replace(attrs, dims=named) if named else None
            case Dot(contract):
                return Dot(self.dims(contract))
            case Rename(pairs):
                sides = ((self.dims((old,)), self.dims((new,))) for old, new in pairs)
                named = tuple(p for old, new in sides for p in zip(old, new, strict=True))
                return Rename(named) if named else None
            case _:
                return attrs

    def written(self, b: Builder, given: Mapping[str, int], dtype: str) -> dict[str, int]:
        """The new values of the parameter and of its states.

        A choice between two host scalars by a tensor's elements would be a tensor in f64.
        """
        function, makers, outputs = self.function, self.makers, self.outputs
        needed = set[int]().union(*(self.reached(v, makers) for v in outputs.values()))
        mapping = {
            number: given[each.name] if each.name in given else b.constant(self.numbers[each.name])
            for number, each in enumerate(function.inputs)
            if number in needed
        }
        for op in function.ops:
            if needed.isdisjoint(op.results):
                continue
            b.path, b.span = ".".join(filter(None, ("optimizer", op.path))), op.span
            operands = self.operands(op, makers)
            attrs = self.of_parameter(op.attrs)
            if attrs is None or len(operands) < len(op.operands):
                mapping[op.results[0]] = mapping[operands[0]]
                continue
            results = b.emit(attrs, *(mapping[value] for value in operands))
            for value, made in zip(op.results, results, strict=True):
                kind = b.types[made]
                mapping[value] = b.cast(made, dtype) if kind.is_float and kind.dims else made
        b.path, b.span = "optimizer", NOWHERE
        return {name: mapping[value] for name, value in outputs.items()}


def equations_for(program: Program, parameter: Parameter) -> Equations:
    """The equations that step a parameter."""
    what = "" if parameter.decays else "no_decay"
    function = program.function(equations_of(parameter.group, what))
    matrix = matrix_of(parameter, program.sizes)
    return Equations(function, matrix, matrix.numbers(program.sizes))


def state_types(program: Program, parameter: Parameter, kind: Type) -> dict[str, Type]:
    """The states that are kept for a parameter of a type, with theirs."""
    made = equations_for(program, parameter)
    whole = {dim for name in made.matrix.sides.values() for dim in name}
    found: dict[str, Type] = {}
    for name in made.outputs:
        if name == "param":
            continue
        template = made.function.types[made.function.input_number(name)]
        kept = whole if not is_matrix(made.function) else set(made.dims(template.names))
        gone = tuple(dim for dim in kind.names if dim in whole - kept)
        found[name] = kind.without(gone)
    return found


def is_matrix(function: Function) -> bool:
    """Whether equations are over a parameter's sides, and not over each element alone."""
    return bool(function.types[function.input_number("param")].dims)


def with_twins(program: Program) -> Program:
    """The program with the second names of dims that its optimizers' equations use."""
    for parameter in program.parameters:
        kinds = equations_for(program, parameter).function.types if parameter.trainable else ()
        if any(side("twin") in kind.names for kind in kinds):
            sides = matrix_of(parameter, program.sizes).sides
            short, _, twin = sides.values()
            for old, new in zip(short, twin, strict=True):
                program = program.with_dim(new, program.sizes.size(old))
    return program
