"""`fllmc inspect`: what an artifact holds, part by part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fllmc.cli.exits import USAGE
from fllmc.cli.group import Command
from fllmc.cli.options import json_option, mesh_option, overrides, set_option

if TYPE_CHECKING:
    from fllmc.cli.opening import Opened
    from fllmc.ir.plan import Bucket, Plan

LEVELS = ("model", "training", "sharded", "plan")


@click.command(cls=Command, name="inspect")
@click.argument("artifact", metavar="ARTIFACT|SPEC")
@mesh_option
@set_option
@click.option("--level", type=click.Choice(LEVELS), help="The program's text at a level.")
@click.option("--schedule", is_flag=True, help="The generated code.")
@click.option("--memory", is_flag=True, help="A rank's memory at the peak and by function.")
@click.option("--collectives", is_flag=True, help="Every collective with its bytes.")
@click.option("--placement", is_flag=True, help="Every stored tensor and where it lives.")
@click.option("--frozen", is_flag=True, help="What frozen parameters cost, beside all trained.")
@click.option("--decisions", is_flag=True, help="What was chosen, and why.")
@click.option("--pipeline", is_flag=True, help="What each rank of a pipeline does, in order.")
@json_option
def command(
    artifact: str,
    mesh: str,
    sets: tuple[str, ...],
    level: str | None,
    schedule: bool,
    memory: bool,
    collectives: bool,
    placement: bool,
    frozen: bool,
    decisions: bool,
    pipeline: bool,
    as_json: bool,
) -> int | None:
    """Show what ARTIFACT holds; a SPEC is compiled first, and nothing is written.

    Without options: the summary that `compile` prints.

    \b
    fllmc inspect quickstart.fllmx --memory --collectives
    fllmc inspect llama3_8b --mesh 8x4 --level sharded
    """
    from fllmc.cli.opening import opened
    from fllmc.cli.output import paint, say, show, show_json
    from fllmc.cli.summary import summary_lines

    found = opened(artifact, mesh, overrides(sets))
    given = (memory, collectives, placement, frozen, decisions, pipeline)
    asked = dict(zip(PARTS, given, strict=True))
    if level and level not in found.levels:
        say(f"error: {artifact} holds no text of level {level}")
        return USAGE
    if as_json:
        return show_json("fllmc.inspect/1", data(found, asked, level, schedule))
    if level:
        show(found.levels[level].rstrip("\n"))
    if schedule:
        show(found.source.rstrip("\n"))
    for name, wanted in asked.items():
        if wanted:
            for line in PARTS[name](found):
                show(line)
    if not (level or schedule or any(asked.values())):
        for line in summary_lines(found.name, found.plan, paint()):
            show(line)
    return None


def data(
    found: Opened, asked: dict[str, bool], level: str | None, schedule: bool
) -> dict[str, Any]:
    """What was asked for as data; the summary always."""
    from fllmc.cli.summary import summary_data

    document = summary_data(found.name, found.plan)
    plan = found.plan
    if level:
        document["level"] = {"name": level, "text": found.levels[level]}
    if schedule:
        document["schedule"] = found.source
    if asked["memory"]:
        document["frames"] = [
            {"function": f.function, "bytes": f.bytes, "live_bytes": f.live_bytes}
            for f in plan.frames
        ]
        document["buckets"] = plan.buckets
    if asked["collectives"]:
        document["sites"] = plan.collectives
    if asked["pipeline"]:
        document["timeline"] = plan.timeline
    if asked["placement"]:
        document["stored"] = [
            {
                "name": s.name,
                "role": s.role,
                "type": str(s.type),
                "bytes": s.bytes,
                "offset": s.offset,
            }
            for s in plan.stored
        ]
    if asked["frozen"]:
        document["frozen"] = plan.frozen
    if asked["decisions"]:
        document["decisions"] = plan.decisions
    return document


def memory_part(found: Opened) -> Iterator[str]:
    """The peak of every entry, and the frames."""
    from fllmc.codegen.timeline import CATEGORIES, timeline
    from fllmc.ir.quantities import bytes_text

    yield from stage_lines(found.plan)
    plan = found.plan.fullest
    for entry in plan.program.entries:
        peak = timeline(plan, entry).peak
        at = f"{peak.kind} {peak.path}".strip()
        yield f"{entry}: at most {bytes_text(peak.total)} alive, during {at} in {peak.function}"
        for category, size in zip(CATEGORIES, peak.bytes, strict=True):
            if size:
                yield f"  {category:<20}{bytes_text(size):>10}"
    yield "frames"
    for frame in sorted(plan.frames, key=lambda f: -f.bytes):
        if frame.bytes:
            size, live = bytes_text(frame.bytes), bytes_text(frame.live_bytes)
            yield f"  {frame.function:<20}{size:>10}   alive {live}"
    yield from bucket_lines(plan.buckets)


def stage_lines(plan: Plan) -> Iterator[str]:
    """The memory of each stage of a pipeline, and which is told of below."""
    from fllmc.codegen.figures import stage_memory
    from fllmc.ir.quantities import bytes_text

    if not plan.stages:
        return
    rows = stage_memory(plan)
    for row in rows:
        parts = (("parameters", row.parameters), ("state", row.optimizer), ("working", row.working))
        told = ", ".join(f"{words} {bytes_text(size)}" for words, size in parts)
        yield f"{plan.pipe} {row.position}: {bytes_text(row.arena)}, of which {told}"
    fullest = max(rows, key=lambda row: row.arena)
    yield f"{plan.pipe} {fullest.position}, the fullest:"


def bucket_lines(buckets: Sequence[Bucket]) -> Iterator[str]:
    """Every bucket, under the regions that it shares with others of its name."""
    from fllmc.ir.quantities import bytes_text

    known: set[str] = set()
    for each in sorted(buckets, key=lambda bucket: bucket.name):
        if each.name not in known:
            known.add(each.name)
            yield f"{each.name}: adjoining"
            for region in each.regions:
                yield f"    {region.name}[{', '.join(map(str, region.shape))}]"
        yield f"  {each.holds:<20}{bytes_text(each.bytes):>10}   from {each.offset:,} on"


def collectives_part(found: Opened) -> Iterator[str]:
    """Every collective, those that move most first."""
    from fllmc.codegen.report import busiest
    from fllmc.ir.quantities import bytes_text

    rows = busiest(found.plan)
    if not rows:
        yield "no collectives: nothing leaves the device"
    for row in rows:
        total = bytes_text(row.bytes * row.calls)
        each = f"{row.calls:,} x {bytes_text(row.bytes)}"
        axes = ", ".join(row.axes)
        path = f"{row.path} copies {bytes_text(row.copied * row.calls)}" if row.copied else row.path
        yield f"{row.entry:<9} {row.kind:<15} {axes:<14} {each:>18} = {total:>9}  {path.strip()}"


def placement_part(found: Opened) -> Iterator[str]:
    """Every stored tensor."""
    from fllmc.ir.quantities import bytes_text

    for each in found.plan.stored:
        yield f"{each.offset:>14,} {bytes_text(each.bytes):>9}  {each.name}: {each.type}"


def frozen_part(found: Opened) -> Iterator[str]:
    """What frozen parameters cost."""
    from fllmc.codegen.frozen import frozen_lines

    yield from frozen_lines(found.plan)


def decisions_part(found: Opened) -> Iterator[str]:
    """Every decision."""
    for each in found.plan.decisions:
        yield f"{each.subject}: {each.choice}"
        yield f"    because {each.reason}"
        if each.rejected:
            yield f"    rejected: {each.rejected}"


def pipeline_part(found: Opened) -> Iterator[str]:
    """The order of work of each rank of a pipeline."""
    timeline = found.plan.timeline
    if not timeline:
        yield "no pipeline"
        return
    whole = max(each.end for each in timeline)
    for rank in range(max(each.rank for each in timeline) + 1):
        own = [each for each in timeline if each.rank == rank]
        busy = sum(each.end - each.begin for each in own) / whole
        yield f"{found.plan.pipe} {rank}: works {busy:.1%} of the step as reckoned"
        yield "  " + " ".join(str(each.action) for each in own)


PARTS = {
    "memory": memory_part,
    "collectives": collectives_part,
    "placement": placement_part,
    "frozen": frozen_part,
    "decisions": decisions_part,
    "pipeline": pipeline_part,
}
