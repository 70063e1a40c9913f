"""Placing the bodies of scans, one for each set of input types, and choosing the types of carries.

A carry that begins as zeros and is only added to takes the type of what is added: gradients are
accumulated where their parameter is stored, and open over the axes over which they are summed once,
after the last run. The type is found by trying the body with zeros of a type still open.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from fllmc.ir.ops import Scan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.types import Dim, Sizes, Type
from fllmc.passes.place.classes import Classes
from fllmc.passes.place.directives import Layout, placed
from fllmc.passes.place.rules import RULES
from fllmc.passes.place.site import Constant, Site, axes_of


class Placer:
    """Places functions; `placed` holds the results under names that are not final yet."""

    def __init__(self, program: Program, layout: Layout) -> None:
        self.program = program
        self.layout = layout
        self.sizes = Sizes(program.sizes.dims, layout.mesh)
        self.classes = Classes(program, layout)
        self.placed: dict[str, Function] = {}
        self.origin: dict[str, str] = {}
        self._known: dict[tuple[str, tuple[Type, ...]], str] = {}

    def site(self, source: Function, kinds: Sequence[Type | None]) -> Site:
        """All ops of a function placed, for inputs of these types; None for zeros of any type."""
        name = f"{source.name}#{len(self.placed)}"
        site = Site(source, name, self.sizes, self.layout, self.classes)
        for number, (given, kind) in enumerate(zip(source.inputs, kinds, strict=True)):
            if kind is None:
                site.values[number] = Constant(source.types[number], 0.0, None)
            else:
                site.values[number] = site.mover.build.input(given.name, kind, given.role)
        for op in source.ops:
            site.mover.build.path, site.mover.build.span = op.path, op.span
            if isinstance(op.attrs, Scan):
                site.settle(op, self.place_scan(site, op, op.attrs))
            else:
                site.settle(op, RULES[type(op.attrs)](site, op, op.attrs))
        return site

    def keep(self, site: Site, results: Sequence[int]) -> Function:
        """The finished function of a site, kept under its own name."""
        function = site.mover.build.finish(results, site.source.outputs, site.source.span)
        self.placed[function.name] = function
        self.origin[function.name] = site.source.name
        return function

    def place_scan(self, site: Site, op: Op, attrs: Scan) -> tuple[int, ...]:
        """The results of a scan, its body placed for the types that its operands have here."""
        body = self.program.function(attrs.function)
        inner = self._settle_zeros(body, self._inner_kinds(site, op, attrs))
        name = self._body(body, inner, attrs.carries)
        function = self.placed[name]
        operands = [
            self._operand(site, value, kind, attrs, number)
            for number, (value, kind) in enumerate(
                zip(op.operands, function.signature.inputs, strict=True)
            )
        ]
        site.mover.build.functions[name] = function.signature
        return site.emit(structs.replace(attrs, function=name), *operands)

    def _inner_kinds(self, site: Site, op: Op, attrs: Scan) -> list[Type | None]:
        """The types of the body's inputs; None for zeros whose type is to be found.

        What belongs to a parameter comes as it is stored, and open if it is; other values come
        resolved and at their canonical places.
        """
        found: list[Type | None] = []
        for number, value in enumerate(op.operands):
            held = site.values[value]
            sliced = attrs.carries <= number < attrs.carries + attrs.slices
            shared = number >= attrs.carries + attrs.slices
            if isinstance(held, Constant) and held.may_be_open and not shared:
                found.append(None)
                continue
            inner = self.classes.axes(attrs.function, number)
            axes = axes_of(self.layout.place(site.source.types[value])) if inner is None else inner
            kind = placed(site.kind(value), axes)
            stays_open = inner is not None and not shared and kind.combine == "sum"
            kind = kind if stays_open else structs.replace(kind, partial=(), combine="sum")
            found.append(kind.placed(kind.dims[1:]) if sliced else kind)
        return found

    def _settle_zeros(self, body: Function, kinds: Sequence[Type | None]) -> tuple[Type, ...]:
        """The types with those of zeros filled in, as a trial of the body uses them."""
        if None not in kinds:
            return tuple(kind for kind in kinds if kind is not None)
        trial = self.site(body, kinds)
        return tuple(
            self._wanted(trial, number) if kind is None else kind
            for number, kind in enumerate(kinds)
        )

    def _wanted(self, trial: Site, number: int) -> Type:
        """The one type in which a trial took these zeros; where they live if it took several."""
        held = trial.values[number]
        made = list(held.made) if isinstance(held, Constant) else []
        return made[0] if len(made) == 1 else placed(trial.source.types[number], trial.home(number))

    def _body(self, body: Function, inner: tuple[Type, ...], carries: int) -> str:
        """The name of the body placed for these inputs, its carries open no further than it gives.

        A carry that the body gives closed can't come in open, so its type is narrowed until both
        agree; each round closes some axis.
        """
        known = self._known.get((body.name, inner))
        if known is not None:
            return known
        site = self.site(body, inner)
        kinds = tuple(
            self._narrowed(site, kind, body.results[number]) if number < carries else kind
            for number, kind in enumerate(inner)
        )
        if kinds == inner:
            name = self.keep(site, self._results(site, inner[:carries])).name
        else:
            name = self._body(body, kinds, carries)
        self._known[(body.name, inner)] = name
        return name

    def _narrowed(self, site: Site, kind: Type, result: int) -> Type:
        """A carry's type, open over no axis that the body's result is not open over."""
        found = site.result(result)
        if isinstance(found, Constant):
            return kind if found.may_be_open else structs.replace(kind, partial=())
        given = site.mover.kind(found)
        axes = given.partial if given.combine == "sum" else ()
        return structs.replace(kind, partial=tuple(a for a in kind.partial if a in axes))

    def _results(self, site: Site, carries: Sequence[Type]) -> list[int]:
        """The body's results: carries in their type, stacked ones open if a parameter's."""
        numbers: list[int] = []
        for position, value in enumerate(site.source.results):
            site.mark(value)
            found = site.result(value)
            if position < len(carries):
                wanted = carries[position]
                numbers.append(self._moved(site, found, wanted))
            elif isinstance(found, Constant):
                numbers.append(site.make(found, placed(found.kind, site.home(value))))
            else:
                numbers.append(found if site.belongs(value) else site.closed(found, value))
        return numbers

    def _moved(self, site: Site, found: int | Constant, wanted: Type) -> int:
        if isinstance(found, Constant):
            return site.make(found, wanted)
        return site.mover.move(found, axes_of(wanted), wanted.partial)

    def _operand(self, site: Site, value: int, kind: Type, attrs: Scan, number: int) -> int:
        """A source value in the type that the placed body takes."""
        if attrs.carries <= number < attrs.carries + attrs.slices:
            kind = kind.placed((Dim(attrs.over), *kind.dims))
        return self._moved(site, site.values[value], kind)
