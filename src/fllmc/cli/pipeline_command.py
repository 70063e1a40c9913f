"""`fllmc pipeline`: a pipeline schedule without a spec: its order, times, bubble and memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fllmc.cli.group import Command
from fllmc.cli.options import json_option

if TYPE_CHECKING:
    from fllmc.passes.schedule.simulate import Simulation


def numbers(ctx: click.Context, option: click.Parameter, value: str) -> tuple[float, ...]:
    """`1,1,0.5` as three numbers, none below zero."""
    words = value.split(",")
    try:
        found = tuple(float(word) for word in words)
    except ValueError:
        found = ()
    if len(found) != 3 or not all(0 <= each < 1e12 for each in found) or not sum(found[:2]):
        raise click.BadParameter(f"`{value}` is not three times such as `1,1,0.5`")
    return found


@click.command(cls=Command, name="pipeline")
@click.argument("kind")
@click.option("--ranks", type=click.IntRange(1, 1024), required=True, help="Pipeline ranks.")
@click.option("--micros", type=click.IntRange(1, 4096), required=True, help="Micro-batches.")
@click.option("--chunks", type=click.IntRange(1, 64), help="Stages of a rank.")
@click.option(
    "--times",
    default="1,1,1",
    callback=numbers,
    help="Times of forward, backward to the input, and weight gradients of a rank.",
)
@click.option("--transfer", type=click.FloatRange(0), default=0.0, help="Time between ranks.")
@click.option(
    "--memory", type=click.FloatRange(0), default=0.0, help="The most to keep, in what 1F1B keeps."
)
@click.option("--exact", is_flag=True, help="For `auto`: search until it is proven best.")
@click.option(
    "--late", type=click.FloatRange(0, 1), default=0.5, help="Share of it kept for weights."
)
@click.option("--svg", type=click.Path(dir_okay=False), help="Write the timeline as a picture.")
@click.option("--table", is_flag=True, help="Print the order of every rank.")
@json_option
def command(
    kind: str,
    ranks: int,
    micros: int,
    chunks: int | None,
    times: tuple[float, ...],
    transfer: float,
    memory: float,
    exact: bool,
    late: float,
    svg: str | None,
    table: bool,
    as_json: bool,
) -> None:
    """Show a pipeline schedule: KIND is gpipe, 1f1b, interleaved, breadth_first, zb_h1, zb_v, auto.

    The order is verified, then simulated. Exits with 3 if no order keeps within the memory.
    """
    from fllmc.cli.output import show
    from fllmc.ir.settings import Pipeline
    from fllmc.passes.schedule.choose import CHUNKED, chosen, placements, quickest
    from fllmc.passes.schedule.costs import uniform
    from fllmc.passes.schedule.text import print_timetable

    asked = Pipeline(kind, chunks or (2 if kind in CHUNKED else 1), memory, exact=exact)

    def place(homes: tuple[int, ...]) -> Simulation:
        forward, back, weight = (time * ranks / len(homes) for time in times)
        costs = uniform(len(homes), forward, back, weight, transfer, late)
        return chosen(asked, ranks, micros, costs, homes)

    found = quickest(placements(asked, ranks), place, lambda each: each.makespan)
    of_rank = found.timetable.stages // ranks
    if svg:
        from fllmc.codegen.timetable_chart import timetable_svg

        Path(svg).write_text(timetable_svg(found.timeline, f"{kind} on {ranks} ranks"), "utf-8")
    if as_json:
        tell_data(found, of_rank)
    elif table:
        show(print_timetable(found.timetable).rstrip())
    else:
        tell(found, exact)


def tell(found: Simulation, exact: bool) -> None:
    """Print the figures and the picture."""
    from fllmc.cli.output import show
    from fllmc.passes.schedule.text import picture

    order = found.timetable
    of_rank = order.stages // order.ranks
    count = stages(of_rank)
    show(f"{order.name}: {order.ranks} ranks, {order.micros} micro-batches, {count} a rank")
    show(f"  time        {found.makespan:g}, of which a rank works {found.busy(0):g}")
    show(f"  bubble      {found.bubble:.2%} of the longest span of a rank")
    if exact:
        show(f"  bound       {found.bound:.2%}: no order that keeps no more is below it")
    show(f"  most kept   {max(found.peaks) / of_rank:g} micro-batches, on the fullest rank")
    for line in picture(found):
        show(line)


def stages(count: int) -> str:
    """`1 stage`, `2 stages`."""
    return "1 stage" if count == 1 else f"{count} stages"


def tell_data(found: Simulation, chunks: int) -> None:
    """Print the figures and the order as JSON."""
    from fllmc.cli.output import show_json

    data: dict[str, Any] = {
        "name": found.timetable.name,
        "makespan": found.makespan,
        "bubble": found.bubble,
        "bound": found.bound,
        "peaks": [peak / chunks for peak in found.peaks],
        "homes": list(found.timetable.homes),
        "rows": [[str(action) for action in row] for row in found.timetable.rows],
    }
    show_json("fllmc.pipeline/1", data)
