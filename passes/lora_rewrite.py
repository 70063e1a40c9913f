"""Rewriting functions for low-rank updates: new parameters reach their uses as the bases do.

A base that is sliced by a scan has its update sliced too; dropout further needs the run's seed, the
batch's sample numbers and, in a stack, the layer's position.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from fllmc.ir.build import Builder
from fllmc.ir.ops import Iota, Random, Scan, Signature
from fllmc.ir.program import Function, Op, Parameter, Program, Role
from fllmc.ir.settings import Lora
from fllmc.ir.types import HOST_SCALAR, Dim, Type, indices, tensor
from fllmc.passes.inline import callees_first
from fllmc.passes.lora import LAYER, PARTS, SAMPLES, SEED, TRAINING, Draw, Update, updated
from fllmc.passes.lora_uses import (
    arrows,
    bound_parameters,
    held_values,
    used_as,
    weight_of,
)
from fllmc.passes.naming import unique


class Extra(msgspec.Struct, frozen=True):
    """An input that a function needs beside its own. `base` is the parameter it belongs to."""

    name: str
    type: Type
    role: Role
    sliced: bool
    base: str = ""


def add_updates(program: Program, loras: Mapping[str, Lora]) -> Program:
    """The program with an update for each named parameter that is a map; scans have own bodies."""
    maps = arrows(program)
    updates: dict[str, Update] = {}
    parameters: list[Parameter] = []
    for p in program.parameters:
        parameters.append(p)
        if p.name in loras and p.name in maps:
            taken = {dim.name for dim in program.dims}
            rank_dim = unique(p.name.replace(".", "_") + "_rank", taken, "_")
            program = program.with_dim(rank_dim, loras[p.name].rank)
            updates[p.name] = Update(loras[p.name], p, maps[p.name], rank_dim)
            parameters += [updates[p.name].parameter(part, program) for part in PARTS]
    program = msgspec.structs.replace(program, parameters=tuple(parameters))
    return Rewriter(program, updates).rewritten()


def batch_dim(program: Program) -> str:
    """The first dim of the first data input of an entry, or nothing."""
    for entry in program.entries:
        function = program.function(entry)
        for given, kind in zip(function.inputs, function.types, strict=False):
            if given.role == "data" and kind.dims:
                return kind.names[0]
    return ""


class Rewriter:
    """Rewrites functions, callees before callers, and remembers what they need."""

    def __init__(self, program: Program, updates: Mapping[str, Update]) -> None:
        self.program = program
        self.updates = updates
        self.bound = bound_parameters(program)
        self.batch = batch_dim(program)
        functions = [program.function(name) for name in self.bound]
        attrs = [op.attrs for function in functions for op in function.ops]
        self.scans = {a.function: a for a in attrs if isinstance(a, Scan)}
        self.place = 1 + max((a.place for a in attrs if isinstance(a, Random)), default=-1)
        self.extras: dict[str, tuple[Extra, ...]] = {}
        self.signatures: dict[str, Signature] = dict(program.signatures)

    def rewritten(self) -> Program:
        """The program with all functions that entries run rewritten."""
        done: list[Function] = []
        for function in callees_first(self.program):
            if function.name in self.bound:
                self.extras[function.name] = self.needed(function)
                new = self.function(function)
                self.signatures[new.name] = new.signature
                done.append(new)
        return self.program.with_functions(*done)

    def uses(self, function: Function) -> dict[int, tuple[Update, int]]:
        """By position of an op that applies an updated base: the update and the operand."""
        held = held_values(function, self.bound[function.name])
        found: dict[int, tuple[Update, int]] = {}
        for at, op in enumerate(function.ops):
            weight = weight_of(op, held)
            if weight is not None and held[op.operands[weight]] in self.updates:
                found[at] = self.updates[held[op.operands[weight]]], weight
        return found

    def needed(self, function: Function) -> tuple[Extra, ...]:
        """The extra inputs of a function whose callees are done, those that exist already out."""
        uses = self.uses(function)
        bases = {update.base.name: None for update, _ in uses.values()}
        random = any(update.needs_random(function.ops[at]) for at, (update, _) in uses.items())
        inner = [e for op in function.ops for e in self.extras.get(callee(op), ())]
        bases.update({extra.base: None for extra in inner if extra.base})
        found = [e for base in bases for e in self.parts(function, base)]
        if random or any(extra.name == SEED for extra in inner):
            entry = function.name in self.program.entries
            samples = tensor("i64", self.batch)
            found.append(Extra(SAMPLES, samples, "data" if entry else "value", False))
            found.append(Extra(SEED, HOST_SCALAR, "host", False))
            found.append(Extra(TRAINING, HOST_SCALAR, "host", False))
        if random and function.name in self.scans:
            over = self.scans[function.name].over
            found.append(Extra(LAYER, indices(over), "value", True))
        own = {given.name for given in function.inputs}
        return tuple(extra for extra in found if extra.name not in own)

    def parts(self, function: Function, base: str) -> list[Extra]:
        """Both parts of a base's update, sliced and cut down as the base is here."""
        held = self.bound[function.name]
        number = next(number for number, name in held.items() if name == base)
        scan = self.scans.get(function.name)
        sliced = scan is not None and number < scan.carries + scan.slices
        update = self.updates[base]
        gone = len(update.base.type.dims) - len(function.types[number].dims)
        whole = [self.program.parameter(f"{base}.{part}") for part in PARTS]
        kinds = [p.type.placed(p.type.dims[gone:]) for p in whole]
        wish = function.inputs[number].name
        names = [f"{wish}.{part}" for part in PARTS]
        return [
            Extra(name, kind, "param", sliced, base)
            for name, kind in zip(names, kinds, strict=True)
        ]

    def function(self, function: Function) -> Function:
        """The function with its extra inputs and updates."""
        b = Builder(function.name, self.program.sizes, self.signatures)
        mapping, named = self.inputs(b, function)
        uses = self.uses(function)
        for at, op in enumerate(function.ops):
            b.path, b.span = op.path, op.span
            if isinstance(op.attrs, Scan):
                results = self.scan(b, op, op.attrs, mapping, named)
            else:
                results = b.emit(op.attrs, *(mapping[value] for value in op.operands))
            mapping.update(zip(op.results, results, strict=True))
            if at in uses:
                update, weight = uses[at]
                delta = self.delta(b, function, op, update, weight, mapping, named)
                b.path = op.path
                mapping[op.results[0]] = b.add(results[0], delta)
        return b.finish([mapping[v] for v in function.results], function.outputs, function.span)

    def inputs(self, b: Builder, function: Function) -> tuple[dict[int, int], dict[str, int]]:
        """Inputs in the order that scans want; extras by base and part, or by name."""
        scan = self.scans.get(function.name)
        stop = len(function.inputs) if scan is None else scan.carries + scan.slices
        mapping: dict[int, int] = {}
        named: dict[str, int] = {}

        def add(numbers: range, sliced: bool) -> None:
            for number in numbers:
                given = function.inputs[number]
                mapping[number] = b.input(given.name, function.types[number], given.role)
                if given.name in (SAMPLES, SEED, TRAINING):
                    named[given.name] = mapping[number]
            for extra in self.extras[function.name]:
                if extra.sliced == sliced:
                    named[key(extra)] = b.input(extra.name, extra.type, extra.role)

        add(range(stop), True)
        add(range(stop, len(function.inputs)), False)
        return mapping, named

    def scan(
        self, b: Builder, op: Op, attrs: Scan, mapping: Mapping[int, int], named: Mapping[str, int]
    ) -> tuple[int, ...]:
        """The scan with its body's extra inputs."""
        extras = self.extras[attrs.function]
        stop = attrs.carries + attrs.slices
        given = [mapping[value] for value in op.operands]
        sliced = [self.handed(b, attrs, extra, named) for extra in extras if extra.sliced]
        shared = [named[key(extra)] for extra in extras if not extra.sliced]
        wider = msgspec.structs.replace(attrs, slices=attrs.slices + len(sliced))
        return b.emit(wider, *given[:stop], *sliced, *given[stop:], *shared)

    def handed(self, b: Builder, attrs: Scan, extra: Extra, named: Mapping[str, int]) -> int:
        """What the scan slices for an extra input of its body."""
        return b.one(Iota(Dim(attrs.over))) if extra.name == LAYER else named[key(extra)]

    def delta(
        self,
        b: Builder,
        function: Function,
        op: Op,
        update: Update,
        weight: int,
        mapping: Mapping[int, int],
        named: Mapping[str, int],
    ) -> int:
        """What the update adds to the op's result."""
        draw: Draw | None = None
        if update.needs_random(op):
            layer = named.get(LAYER, -1)
            drawn_by = named[SEED], named[TRAINING], named[SAMPLES]
            draw = Draw(*drawn_by, layer, self.place, self.batch)
            self.place += 1
        weights = {part: named[f"{update.base.name}.{part}"] for part in PARTS}
        used = used_as(op, weight, function)
        x, dtype = mapping[op.operands[1 - weight]], function.types[op.results[0]].dtype
        return updated(b, update, op, used, x, weights, draw, dtype)


def callee(op: Op) -> str:
    """The body of a scan, or nothing."""
    return op.attrs.function if isinstance(op.attrs, Scan) else ""


def key(extra: Extra) -> str:
    """What an extra input is found by in any function: its parameter's name or its own."""
    return f"{extra.base}.{extra.name.rpartition('.')[2]}" if extra.base else extra.name
