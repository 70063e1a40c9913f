"""The pass `place`: where every value lives on the mesh, and the collectives that follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from msgspec import structs

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.program import Function, Input, Level, Op, Program, callees
from fllmc.ir.settings import Context as ContextKind
from fllmc.ir.settings import ExpertRows, Shard, Zero
from fllmc.ir.types import Type
from fllmc.passes.base import Context, Pass
from fllmc.passes.place.attention import dealt
from fllmc.passes.place.cheapest import decisions, settle
from fllmc.passes.place.checks import conflicts
from fllmc.passes.place.classes import stored_axes
from fllmc.passes.place.copies import with_copies
from fllmc.passes.place.directives import Layout, placed, resolve
from fllmc.passes.place.expert_layout import with_room
from fllmc.passes.place.scans import Placer
from fllmc.passes.place.site import Constant, Site, axes_of
from fllmc.passes.place_errors import HeadsApart, Indivisible


class Place(Pass, frozen=True):
    """Place values and stored parameters on the mesh as the directives say; insert collectives."""

    name: ClassVar[str] = "place"
    takes: ClassVar[Level] = "training"
    gives: ClassVar[Level] = "sharded"
    keeps: ClassVar[str] = "math"

    shards: tuple[Shard, ...] = ()
    context: ContextKind = "gather"
    zero: tuple[Zero, ...] = ()
    reduce: str = "f32"
    expert_rows: ExpertRows = "routed"

    def run(self, program: Program, cx: Context) -> Program:
        """The sharded program on the mesh of the context."""
        ruled, layout = self.ruled(program, cx)
        settled = settle(ruled, layout)
        for decision in decisions(settled):
            cx.decide(decision)
        return settled.program

    def ruled(self, program: Program, cx: Context) -> tuple[Program, Layout]:
        """The program as the rules place it, and the layout that directives give it."""
        resolved = resolve(self.shards, cx.mesh, program, self.zero)
        experts = structs.replace(resolved.layout.experts, ragged=self.expert_rows == "routed")
        layout = structs.replace(
            resolved.layout, context=self.context, reduce=self.reduce, experts=experts
        )
        found = judged((*resolved.diagnostics, *conflicts(layout, program)))
        errors = [diagnostic for diagnostic in found if diagnostic.severity == "error"]
        for diagnostic in found:
            if diagnostic.severity == "warning":
                cx.report(diagnostic)
        if errors:
            raise DiagnosticError(*errors)
        program = structs.replace(program, level="sharded", mesh=cx.mesh)
        if layout.empty:
            return program, layout
        layout = dealt(layout, program)
        program = with_room(with_copies(program, layout), layout.experts, cx.mesh)
        return place_program(program, layout), layout


def judged(found: Sequence[Diagnostic]) -> tuple[Diagnostic, ...]:
    """The diagnostics, less indivisible heads where grouped heads say more about them."""
    grouped = {
        dim for one in found if isinstance(one, HeadsApart) for dim in (one.heads, one.kv_heads)
    }
    return tuple(one for one in found if not (isinstance(one, Indivisible) and one.dim in grouped))


def place_program(program: Program, layout: Layout) -> Program:
    """Every function that the entries reach, placed for the types that it is run with.

    The initial values of optimizer states are scalars and stay as they are.
    """
    placer = Placer(program, layout)
    entries = {name: place_entry(placer, program.function(name)) for name in program.entries}
    final = final_names(placer, entries)
    equations = [f for f in program.functions if f.name == "optimizer.states"]
    functions = [
        renamed(placer.placed[name], final)
        for source in program.functions
        for name in sorted(final, key=serial)
        if placer.origin[name] == source.name
    ]
    parameters = tuple(
        structs.replace(p, type=layout.place_parameter(p.name, p.type)) for p in program.parameters
    )
    return structs.replace(program, functions=(*functions, *equations), parameters=parameters)


def place_entry(placer: Placer, source: Function) -> str:
    """The name of a placed entry. What is stored comes and goes in one type, all else resolved."""
    kinds = [
        input_kind(placer, given, kind)
        for given, kind in zip(source.inputs, source.types, strict=False)
    ]
    site = placer.site(source, kinds)
    stored = dict(zip((given.name for given in source.inputs), kinds, strict=True))
    for parameter in placer.program.parameters:
        kind = placer.layout.place_parameter(parameter.name, parameter.type)
        stored.setdefault(parameter.name, kind)
    results = [
        entry_result(site, name, value, stored.get(name))
        for name, value in zip(source.outputs, source.results, strict=True)
    ]
    return placer.keep(site, results).name


def input_kind(placer: Placer, given: Input, kind: Type) -> Type:
    """The placed type of an entry's input."""
    if given.role == "host":
        return kind
    if given.role in ("param", "state"):
        axes = stored_axes(given.name, kind, placer.program.parameters, placer.layout)
        return placed(kind, axes)
    return placed(kind, placer.layout.canonical)  # what is given whole can be cut for nothing


def entry_result(site: Site, name: str, value: int, wanted: Type | None) -> int:
    """A result, in the type of the input of that name if there is one."""
    site.mover.build.path = name
    found = site.result(value)
    if isinstance(found, Constant):
        return site.make(found, wanted or placed(found.kind, site.home(value)))
    if wanted is None:
        return site.closed(found, value)
    return site.mover.move(found, axes_of(wanted))


def final_names(placer: Placer, entries: Mapping[str, str]) -> dict[str, str]:
    """Names of the functions that are run: their source's, numbered where there are several."""
    final = {name: entry for entry, name in entries.items()}
    taken = {function.name for function in placer.program.functions}
    free = {function.name for function in placer.program.functions} - set(entries)
    todo = list(entries.values())[::-1]
    while todo:
        name = todo.pop()
        if name not in final:
            origin = placer.origin[name]
            count = 1
            final[name] = origin
            while final[name] in taken and final[name] not in free:
                count += 1
                final[name] = f"{origin}.{count}"
            taken.add(final[name])
            free.discard(final[name])
        todo += [other for other in callees(placer.placed[name]) if other not in final][::-1]
    return final


def serial(name: str) -> int:
    """The number at which a function was placed."""
    return int(name.rpartition("#")[2])


def renamed(function: Function, final: Mapping[str, str]) -> Function:
    """The function under its final name, running others under theirs."""
    return structs.replace(
        function, name=final[function.name], ops=tuple(renamed_ops(function.ops, final))
    )


def renamed_ops(ops: Sequence[Op], final: Mapping[str, str]) -> list[Op]:
    """The ops, running functions under their final names."""
    changed: list[Op] = []
    for op in ops:
        name = getattr(op.attrs, "function", "")
        changed.append(
            structs.replace(op, attrs=structs.replace(op.attrs, function=final[name]))
            if name
            else op
        )
    return changed
