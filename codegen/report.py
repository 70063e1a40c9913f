"""The report: one page about a plan that needs nothing but a browser, and no network.

What stands in it follows from the plan and the texts of its levels alone. The template escapes all
that it is given, so nothing in a spec can act on the page.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from fllmc.codegen import figures
from fllmc.codegen.chart import memory_chart
from fllmc.codegen.frozen import frozen_lines
from fllmc.codegen.schedule import schedule_text
from fllmc.codegen.timeline import PERSISTENT, timeline
from fllmc.codegen.timetable_chart import timetable_svg
from fllmc.ir.flops import op_flops
from fllmc.ir.ops import Pipeline, Scan
from fllmc.ir.plan import Collective, Plan
from fllmc.ir.program import Function, Op, Program
from fllmc.ir.quantities import bytes_text, count_text, flops_text
from fllmc.ir.walk import calls_of, host_values

TEMPLATES = Path(__file__).parent / "templates"
LONGEST = 400_000
"""Characters of a program's text that are shown; the artifact's folder holds all of it."""


class Card(msgspec.Struct, frozen=True):
    """One figure at the head of the page."""

    title: str
    value: str
    note: str


class OpRow(msgspec.Struct, frozen=True):
    """One op of a function."""

    number: int
    kind: str
    path: str
    results: tuple[str, ...]
    bytes: str
    flops: str
    source: str


class FunctionTable(msgspec.Struct, frozen=True):
    """A function's ops; it runs `calls` times in one call of the entry `entry`."""

    name: str
    entry: str
    calls: int
    frame: str
    rows: tuple[OpRow, ...]


def report_html(name: str, plan: Plan, levels: Mapping[str, str]) -> str:
    """The page of a plan; `levels` are the program's texts, by level."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    environment = jinja2.Environment(
        loader=loader,
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2", globals={"in_bytes": bytes_text})
    return page.render(**contents(name, plan, levels))


def contents(name: str, plan: Plan, levels: Mapping[str, str]) -> dict[str, Any]:
    """What the template shows."""
    whole, plan = plan, plan.fullest
    entry = plan.program.entries[0]
    return {
        "name": name,
        "plan": plan,
        "whole": whole,
        "entry": entry,
        "cards": tuple(cards(plan, entry, whole)),
        "chart": memory_chart(timeline(plan, entry)),
        "order": order(whole),
        "stages": figures.stage_memory(whole) if whole.stages else (),
        "memory": figures.memory(plan),
        "roles": PERSISTENT,
        "traffic": figures.traffic(plan, entry),
        "collectives": busiest(plan),
        "frozen": tuple(frozen_lines(plan)) if plan.frozen else (),
        "functions": tuple(function_tables(plan)),
        "levels": {level: shortened(text) for level, text in levels.items()},
        "schedule": shortened(schedule_text(whole)),
    }


def order(plan: Plan) -> str:
    """The picture of a pipeline's order of work, or nothing."""
    words = f"the work of the stages along {plan.pipe} in one step, as reckoned"
    return timetable_svg(plan.timeline, words) if plan.timeline else ""


def cards(plan: Plan, entry: str, whole: Plan) -> Iterator[Card]:
    """The figures that one asks for first."""
    program, memory = plan.program, figures.memory(plan)
    counted = figures.parameters(*(stage.program for stage in whole.by_stage))
    moved = sum(row.bytes for row in figures.traffic(plan, entry))
    share = 100 * counted.trained / max(counted.total, 1)
    trained = "all trained" if counted.trained == counted.total else f"{share:.2g} % trained"
    yield Card("Parameters", count_text(counted.total), trained)
    ranks = program.mesh.size
    yield Card("Ranks", f"{ranks:,}", str(program.mesh))
    used = 100 * memory.arena / max(plan.target.memory_bytes, 1)
    of = f"{used:.3g} % of {plan.target.name}'s {bytes_text(plan.target.memory_bytes)}"
    yield Card("Memory per rank", bytes_text(memory.arena), of)
    per = "per rank and step"
    yield Card("Moved", bytes_text(moved) if moved else "nothing", per)
    yield Card("Matrix work", flops_text(figures.operations(plan, entry)), per)
    steps = figures.updates(plan, entry)
    yield Card("Updates", f"{steps.kernels:,}", f"kernels for {steps.parameters:,} tensors")
    tokens = plan.data.batch * plan.data.seq
    shape = f"{plan.data.batch:,} samples of {plan.data.seq:,}"
    yield Card("Tokens per step", count_text(tokens), shape)


def busiest(plan: Plan) -> tuple[Collective, ...]:
    """All collectives, those that move most first."""
    order = {entry: number for number, entry in enumerate(plan.program.entries)}
    return tuple(
        sorted(plan.collectives, key=lambda c: (order[c.entry], -c.bytes * c.calls, c.site))
    )


def function_tables(plan: Plan) -> Iterator[FunctionTable]:
    """Every function that an entry runs, once, but for fused groups, which are a row each."""
    shown: set[str] = set()
    for entry in plan.program.entries:
        for name, calls in runs(plan.program, entry, 1):
            if name not in shown:
                shown.add(name)
                function = plan.program.function(name)
                frame = bytes_text(plan.frame(name).bytes)
                rows = tuple(op_rows(function, plan.program))
                yield FunctionTable(name, entry, calls, frame, rows)


def runs(program: Program, name: str, calls: int) -> Iterator[tuple[str, int]]:
    """A function and those that its scans run, with how often."""
    yield name, calls
    for op in program.function(name).ops:
        if isinstance(op.attrs, Scan):
            for callee, turns in calls_of(op, program.sizes):
                yield from runs(program, callee, calls * turns)
        elif isinstance(op.attrs, Pipeline):
            for callee, times in calls_of(op, program.sizes):
                yield from runs(program, callee, calls * times)


def op_rows(function: Function, program: Program) -> Iterator[OpRow]:
    """The ops of a function that compute on tensors."""
    host = host_values(function)
    sizes = program.sizes
    for number, op in enumerate(function.ops):
        if all(value in host for value in op.results):
            continue
        kinds = [function.types[value] for value in op.results]
        flops = op_flops(function, op, sizes)
        yield OpRow(
            number=number,
            kind=kind_of(op, program),
            path=op.path,
            results=tuple(map(str, kinds)),
            bytes=bytes_text(sum(map(sizes.local_bytes, kinds))),
            flops=flops_text(flops) if flops else "",
            source=str(op.span) if op.span.line else "",
        )


def kind_of(op: Op, program: Program) -> str:
    """The op's name; of a group also what is in it, of a scan what it runs."""
    callee = getattr(op.attrs, "function", "")
    if isinstance(op.attrs, Scan):
        turns = program.sizes.size(op.attrs.over)
        return f"scan {callee} × {turns}"
    if callee:
        return f"{op.kind}: " + " ".join(each.kind for each in program.function(callee).ops)
    return op.kind


def shortened(text: str) -> str:
    """The text, cut where it would make the page too large."""
    if len(text) <= LONGEST:
        return text
    return f"{text[:LONGEST]}\n... {len(text) - LONGEST:,} more characters stand in the artifact"
