"""The report and the figures that it shows."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from msgspec import structs

from fllmc.codegen import figures
from fllmc.codegen.chart import memory_chart
from fllmc.codegen.report import report_html
from fllmc.codegen.timeline import CATEGORIES, timeline
from fllmc.driver import Compiled, compile_spec
from fllmc.ir.plan import Decision

MESHES = ["1", "2x1", "2x2", "data=2,fsdp=2"]


@pytest.fixture(scope="module", params=MESHES)
def compiled(request: pytest.FixtureRequest) -> Compiled:
    """The quickstart on a mesh."""
    return compile_spec("quickstart", request.param)


def page_of(compiled: Compiled) -> str:
    return report_html("quickstart", compiled.plan, dict(compiled.levels))


def test_the_peak_is_within_the_arena(compiled: Compiled) -> None:
    """Bytes alive never exceed the arena, and the layout wastes little of it."""
    plan = compiled.plan
    for entry in plan.program.entries:
        peak = timeline(plan, entry).peak
        assert peak.total <= plan.frame_base + plan.frame(entry).bytes <= plan.arena_bytes
    assert figures.memory(plan).least >= 0.9 * plan.arena_bytes


def test_memory_adds_up_to_the_arena(compiled: Compiled) -> None:
    memory = figures.memory(compiled.plan)
    parts = memory.parameters + memory.optimizer + memory.data + memory.working
    assert parts == memory.arena == compiled.plan.arena_bytes


def test_a_moment_holds_what_is_stored(compiled: Compiled) -> None:
    """Parameters and states are there from the first op to the last."""
    line = timeline(compiled.plan, "train")
    memory = figures.memory(compiled.plan)
    for moment in line.moments:
        assert moment.bytes[0] == memory.parameters
        assert moment.bytes[1] == memory.optimizer


def test_activations_are_saved_between_the_passes_and_gradients_after(compiled: Compiled) -> None:
    line = timeline(compiled.plan, "train")
    saved, gradients = CATEGORIES.index("saved activations"), CATEGORIES.index("gradients")
    forward, backward = (
        next(s for s in line.stretches if s.label == name)
        for name in ("layer.forward", "layer.backward")
    )
    assert line.moments[forward.stop].bytes[saved] > 0
    assert line.moments[backward.stop].bytes[saved] == 0
    assert line.moments[forward.start].bytes[gradients] == 0
    assert line.moments[backward.stop].bytes[gradients] > 0


def test_flops_are_those_of_the_textbook() -> None:
    """6 per parameter and token for the matrices (embedding lookups have none), and attention."""
    compiled = compile_spec("quickstart")
    program = compiled.plan.program
    size = program.sizes.size
    tokens = size("batch") * size("seq")
    matrices = sum(
        program.sizes.local_elements(p.type)
        for p in program.parameters
        if not p.name.endswith("scale") and p.name != "embedding"
    )
    per_product = tokens * size("seq") * size("embed")
    attention = size("layers") * (2 + 5) * per_product
    assert figures.operations(compiled.plan, "train") == 6 * tokens * matrices + attention


def test_work_is_divided_by_a_mesh_that_divides_it() -> None:
    alone = figures.operations(compile_spec("quickstart").plan, "train")
    shared = figures.operations(compile_spec("quickstart", "2x2").plan, "train")
    assert alone == 4 * shared


def test_traffic_is_the_sum_of_the_collectives(compiled: Compiled) -> None:
    plan = compiled.plan
    rows = figures.traffic(plan, "train")
    assert sum(row.bytes for row in rows) == sum(
        each.bytes * each.calls for each in plan.collectives if each.entry == "train"
    )
    assert bool(rows) == (plan.program.mesh.size > 1)


class Tags(HTMLParser):
    """Collects a page's tags and whatever could load or run something."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.links: list[str] = []
        self.handlers: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "data", "action")]
        self.handlers += [k for k, _ in attrs if k.startswith("on")]


def tags(page: str) -> Tags:
    found = Tags()
    found.feed(page)
    return found


def test_the_page_stands_alone(compiled: Compiled) -> None:
    page = page_of(compiled)
    found = tags(page)
    assert found.names.isdisjoint({"script", "link", "iframe", "img", "object", "embed", "form"})
    assert all(link.startswith("#") for link in found.links)
    assert not found.handlers
    assert not re.search(r"url\(|@import", page)
    assert len(page.encode()) < 2_000_000


def test_nothing_in_a_spec_acts_on_the_page(tmp_path: Path) -> None:
    compiled = compile_spec("quickstart")
    evil = '</pre><script>alert("x")</script><img src=x onerror=alert(1)>`"\''
    plan = structs.replace(
        compiled.plan,
        mesh_read=evil,
        train=structs.replace(compiled.plan.train, name=evil),
        decisions=(Decision(evil, evil, evil, evil),),
    )
    found = tags(report_html(evil, plan, {evil: evil}))
    assert found.names.isdisjoint({"script", "img"})
    assert not found.handlers


def test_the_page_follows_from_the_plan(compiled: Compiled) -> None:
    assert page_of(compiled) == page_of(compiled)
    page = page_of(compiled)
    for stored in compiled.plan.stored:
        assert f"<code>{stored.name}</code>" in page


def test_the_chart_marks_the_peak(compiled: Compiled) -> None:
    chart = memory_chart(timeline(compiled.plan, "train"))
    assert min(tick.y for tick in chart.ticks) >= chart.peak_y > 0
    assert len({area.name for area in chart.areas}) == len(chart.areas) >= 5
    assert all(spot.width > 0 for spot in chart.spots)
