"""What `recompute` directives say of single ops.

An op's path within the body of a stack `body` reads `body.0.attn.attend` for its first layer; a
selector must speak of all layers or of none. Paths to keep may be relative to the layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import msgspec

from fllmc.ir.diagnostics import Diagnostic
from fllmc.ir.ops import (
    Cast,
    Dequantize,
    Elementwise,
    Fill,
    Iota,
    LocalSlice,
    Number,
    Pick,
    Rename,
    Rope,
    Scan,
    Spread,
    TopK,
    Transpose,
)
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.select import selects, within
from fllmc.ir.settings import Recompute
from fllmc.passes.errors import RecomputesNothing

CHEAP = (Elementwise, Fill, Iota, LocalSlice, Number, Pick, Rename, Rope, Spread, Transpose)
"""Ops that cost a pass over memory at most, as keeping their results would.

Reductions do too, but their results are small: keeping them saves the pass.
"""

FORMS = (Cast, LocalSlice, Rename, Transpose)
"""Ops whose result is their operand in another form."""

LAYERS = ("0", "1")
"""Two layers that stand for all: a selector of both is taken for one of every layer."""

OTHER = "later"
"""Stands for the later layers that a number in a pattern speaks of."""


class Place(msgspec.Struct, frozen=True):
    """Where a function runs: in which stack, or an empty path."""

    stack: str = ""

    def inside(self, op: Op) -> Place:
        """The place of the function that a scan op here runs."""
        return Place(self.shown(op)) if op.path else self

    def paths(self, op: Op) -> tuple[str, ...]:
        """The path of an op here in two layers that stand for all."""
        if not self.stack:
            return (op.path,)
        first, *rest = op.path.split(".")
        if first.isdecimal():
            return tuple(within(self.stack, "", ".".join((n, *rest))) for n in (first, OTHER))
        return tuple(within(self.stack, layer, op.path) for layer in LAYERS)

    def shown(self, op: Op) -> str:
        """The path of an op here with `*` for the layer."""
        if not self.stack:
            return op.path
        return within(self.stack, "*", re.sub(r"^\d+(?=\.|$)", "*", op.path))


class Policy(msgspec.Struct, frozen=True):
    """The directives, and whether cheap ops in stacks are recomputed without being told."""

    selectors: tuple[Recompute, ...]
    cheap: bool

    def selected(self, op: Op, place: Place) -> bool:
        """Whether a directive says that the op's values are not kept."""
        return any(
            matches(rule.selector, op, place) and not kept(rule, op, place)
            for rule in self.selectors
        )

    def recomputable(self, op: Op, place: Place) -> bool:
        """Whether the op, in the body of a stack, may be run again in the backward pass.

        What a directive names under `keep` is kept, however cheap it is; a cast, which makes no
        value of its own, may still be run again.
        """
        if isinstance(op.attrs, TopK):
            return False  # the backward pass must see the choice that was made, to the bit
        if self.selected(op, place) or (self.cheap and isinstance(op.attrs, Cast)):
            return True
        return self.cheap and isinstance(op.attrs, CHEAP) and not self.named(op, place)

    def named(self, op: Op, place: Place) -> bool:
        """Whether a directive names the op among what it keeps."""
        return any(
            matches(rule.selector, op, place) and kept(rule, op, place) for rule in self.selectors
        )


def never_kept(body: Function) -> set[int]:
    """Values that stand for codes, in whatever form: to keep them would undo the storage."""
    found: set[int] = set()
    for op in body.ops:
        form = isinstance(op.attrs, FORMS) and op.operands[0] in found
        if form or isinstance(op.attrs, Dequantize):
            found.update(op.results)
    return found


def matches(selector: str, op: Op, place: Place) -> bool:
    """Whether the selector matches the op in every layer."""
    return all(selects(selector, path) for path in place.paths(op))


def kept(rule: Recompute, op: Op, place: Place) -> bool:
    """Whether the op is among those that the directive keeps."""
    return any(
        matches(path, op, place) or selects(path, op.path) or matches(f"*.{path}", op, place)
        for path in rule.keep
    )


def all_places(program: Program) -> dict[str, tuple[Place, ...]]:
    """The places of every function that the entries run, in order and without repeats."""
    found: dict[str, dict[Place, None]] = {name: {Place(): None} for name in program.entries}
    todo = [(name, Place()) for name in program.entries]
    while todo:
        name, place = todo.pop(0)
        for op in program.function(name).ops:
            if isinstance(op.attrs, Scan):
                inner = place.inside(op)
                known = found.setdefault(op.attrs.function, {})
                if inner not in known:
                    known[inner] = None
                    todo.append((op.attrs.function, inner))
    return {name: tuple(places) for name, places in found.items()}


def all_ops(program: Program) -> Iterator[tuple[Op, Place]]:
    """Every op with every place that it runs at."""
    for name, places in all_places(program).items():
        for op in program.function(name).ops:
            for place in places:
                yield op, place


def mistakes(policy: Policy, program: Program) -> list[Diagnostic]:
    """Selectors and paths to keep that match no op."""
    ops = [(op, place) for op, place in all_ops(program) if op.path or place.stack]
    found: list[Diagnostic] = []
    for rule in policy.selectors:
        under = [(op, place) for op, place in ops if matches(rule.selector, op, place)]
        if not under:
            found.append(RecomputesNothing(rule.span, rule.selector, shown_paths(ops)))
            continue
        for path in rule.keep:
            alone = msgspec.structs.replace(rule, keep=(path,))
            if not any(kept(alone, op, place) for op, place in under):
                found.append(RecomputesNothing(rule.span, path, shown_paths(under)))
    return found


def shown_paths(ops: list[tuple[Op, Place]]) -> tuple[str, ...]:
    """The paths of these ops, with `*` for the layer of a stack."""
    return tuple(sorted({place.shown(op) for op, place in ops}))
