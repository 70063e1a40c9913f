"""The compiler on one screen: a spec's text to a checked spec, a program, a plan, an artifact."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import msgspec
from msgspec import structs

from fllmc.codegen.frozen import frozen_figures
from fllmc.codegen.make_plan import make_plan
from fllmc.codegen.schedule import schedule_text
from fllmc.frontend import load_spec
from fllmc.frontend.mesh import parse_mesh
from fllmc.frontend.targets import load_target, smallest_target
from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.plan import Plan
from fllmc.ir.program import Program
from fllmc.ir.settings import Spec
from fllmc.ir.text import print_program
from fllmc.ir.types import Mesh
from fllmc.passes.base import Context
from fllmc.passes.decisions import decisions
from fllmc.passes.pipeline import standard_pipeline
from fllmc.passes.runner import Dump, Timing, run_pipeline


class Compiled(msgspec.Struct, frozen=True):
    """What compiling gave: the spec, the plan, its code, and how it came about."""

    spec: Spec
    plan: Plan
    source: str
    levels: tuple[tuple[str, str], ...]
    warnings: tuple[Diagnostic, ...]
    timings: tuple[Timing, ...]


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
    found: list[Diagnostic] = list(warnings)
    cx = Context(mesh=chosen, report=found.append)
    levels: dict[str, Program] = {}

    def keep(number: int, name: str, program: Program) -> None:
        levels[program.level] = program
        if dump is not None:
            dump(number, name, program)

    read = Timing("read and check", clock() - begin, 0.0)
    program, timings = run_pipeline(spec.program, standard_pipeline(spec), cx, clock, keep)
    begin = clock()
    reasons = decisions(program, spec.schedule)
    plan = make_plan(program, spec, load_target(target or "cpu"), reasons, mesh_read)
    if not target:
        plan = structs.replace(plan, target=smallest_target(plan.arena_bytes))
    full = all_trained(spec, chosen)
    if full is not None:
        plan = structs.replace(plan, frozen=frozen_figures(plan, full))
    source = schedule_text(plan)
    planned = Timing("plan and schedule", clock() - begin, 0.0)
    texts = tuple((level, print_program(each)) for level, each in levels.items())
    return Compiled(spec, plan, source, texts, tuple(found), (read, *timings, planned))


def all_trained(spec: Spec, mesh: Mesh) -> Plan | None:
    """The plan of a spec that freezes something, without its adapter; None where there is none."""
    adapter = spec.adapter
    if adapter is None or not (adapter.freeze or adapter.rows or adapter.quantize):
        return None
    whole = structs.replace(spec, adapter=None)
    cx = Context(mesh=mesh, report=lambda found: None)
    try:
        program, _ = run_pipeline(whole.program, standard_pipeline(whole), cx, lambda: 0.0)
    except DiagnosticError:  # a budget, for one, may be too small for it
        return None
    return make_plan(program, whole, load_target("cpu"))


def choose_mesh(text: str, spec: Spec) -> tuple[Mesh, str]:
    """The mesh asked for, else the spec's own, else one device; with how it was read."""
    if text:
        return parse_mesh(text, spec.mesh)
    if spec.mesh.axes:
        return spec.mesh, f"{spec.mesh}: as the spec declares it"
    return Mesh(), "one device"
