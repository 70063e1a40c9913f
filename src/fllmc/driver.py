"""The compiler on one screen: a spec's text to a checked spec, a program, a plan, an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import structs

from fllmc.codegen.frozen import frozen_figures
from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.fitting import check_host, fit
from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.frontend.targets import load_target, smallest_target
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.plan import Decision, Frozen, Plan
from fllmc.ir.program import Program
from fllmc.ir.settings import Spec
from fllmc.ir.text import print_program
from fllmc.ir.types import Mesh
from fllmc.passes.at_settings import at_settings
from fllmc.passes.base import Context
from fllmc.passes.decisions import decisions
from fllmc.passes.finishing import CUT, finish
from fllmc.passes.runner import Dump, Timing
from fllmc.passes.stages.directives import placing_shards


class Compiled(msgspec.Struct, frozen=True):
    """What compiling gave: the spec, the plan, its code, and how it came about."""

    spec: Spec
    plan: Plan
    source: str
    levels: tuple[tuple[str, str], ...]
    warnings: tuple[Diagnostic, ...]
    timings: tuple[Timing, ...]
    later: tuple[str, ...] = ()
    """The code of the later parts of a run in stages."""


def compile_spec(
    path: str,
    mesh: str = "",
    overrides: Mapping[str, str] | None = None,
    target: str = "",
    clock: Callable[[], float] = lambda: 0.0,
    dump: Dump | None = None,
    tell: Callable[[str], None] = lambda reading: None,
) -> Compiled:
    """Compile a spec file, or a spec that ships by its name, for a mesh.

    An empty mesh is the spec's own, or one device; `tell` is given how it was read. An empty target
    is the smallest device that ships on which the plan fits. Raises DiagnosticError with all that
    is wrong.
    """
    begin = clock()
    spec, warnings = load_spec(path, overrides or {})
    chosen, mesh_read = choose_mesh(mesh, spec)
    tell(mesh_read)
    read = Timing("read and check", clock() - begin, 0.0)
    first = compile_part(spec, chosen, mesh_read, target, clock, dump)
    later = [compile_part(each, chosen, mesh_read, target) for each in spec.later]
    found = dict.fromkeys(each for part in (first, *later) for each in part.warnings)
    return structs.replace(
        first,
        plan=structs.replace(first.plan, later=tuple(part.plan for part in later)),
        warnings=(*warnings, *found),
        timings=(read, *first.timings),
        later=tuple(part.source for part in later),
    )


def compile_part(
    spec: Spec,
    chosen: Mesh,
    mesh_read: str,
    target: str,
    clock: Callable[[], float] = lambda: 0.0,
    dump: Dump | None = None,
) -> Compiled:
    """Compile a checked spec, of a run in stages the part that it is, for a mesh."""
    found: list[Diagnostic] = []
    by_passes: list[Decision] = []
    cx = Context(mesh=chosen, report=found.append, decide=by_passes.append)
    levels: dict[str, Program] = {}

    def keep(number: int, name: str, program: Program) -> None:
        if name != CUT:
            levels[program.level] = program
        if dump is not None:
            dump(number, name, program)

    known = load_target(target or "cpu")
    with at_settings(spec.schedule, cx) as cx:
        within, beside, told = fit(spec, chosen, target)
        done = finish(spec, cx, clock, keep, known, within, beside)
    begin = clock()
    values = structs.replace(spec.schedule, shards=placing_shards(spec.schedule, spec.program))
    reasons = (*done.decisions, *decisions(done.sharded, values, told), *by_passes, *told)
    first, *others = done.programs
    plan = make_plan(
        first, spec, known, reasons, mesh_read, done.pipe, others, timeline=done.timeline
    )
    with at_settings(spec.schedule, cx):
        plan = settled(plan, spec, target)
    source = schedule_text(plan)
    planned = Timing("plan and schedule", clock() - begin, 0.0)
    before = tuple((level, print_program(p)) for level, p in levels.items() if level != "plan")
    texts = (*before, ("plan", done.text()))
    return Compiled(spec, plan, source, texts, tuple(found), (*done.timings, planned))


def settled(plan: Plan, spec: Spec, target: str) -> Plan:
    """The plan with a target that it fits on and what frozen parameters cost.

    DiagnosticError where more waits in host memory than is allowed.
    """
    check_host(plan, spec.schedule)
    if not target:
        plan = structs.replace(plan, target=smallest_target(plan.fullest.arena_bytes))
    return structs.replace(plan, frozen=frozen_share(plan, spec))


def frozen_share(plan: Plan, spec: Spec) -> Frozen | None:
    """What frozen parameters cost beside the same spec without its adapter.

    None where nothing is frozen, where stages are cut, and where the other spec has no plan (a
    budget, for one, may be too small for it).
    """
    adapter, mesh = spec.adapter, plan.program.mesh
    if plan.stages or adapter is None or not (adapter.freeze or adapter.rows):
        return None
    whole = structs.replace(spec, adapter=None)
    cx = Context(mesh=mesh, report=lambda found: None)
    try:
        within, beside, _ = fit(whole, mesh, plan.target.name)
        done = finish(
            whole, cx, lambda: 0.0, lambda number, name, program: None, plan.target, within, beside
        )
    except DiagnosticError:
        return None
    return frozen_figures(plan, make_plan(done.programs[0], whole, plan.target))


def choose_mesh(text: str, spec: Spec) -> tuple[Mesh, str]:
    """The mesh asked for, else the spec's own, else one device; with how it was read."""
    if text:
        return parse_mesh(text, spec.mesh)
    if spec.mesh.axes:
        return spec.mesh, f"{spec.mesh}: as the spec declares it"
    return Mesh(), "one device"
