"""The order of work of a pipeline stands in the plan, in the report, and in what inspect prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from fllmc.codegen.report import report_html
from fllmc.driver import Compiled, compile_spec
from fllmc.ir.quantities import bytes_text
from fllmc.ir.timetable import Action
from tests.cli.running import document, run
from tests.oracle.small_specs import small_spec

DIRECTIVES = "shard layers over pipe\n  pipeline: zb_h1"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small Llama in two stages."""
    path = tmp_path_factory.mktemp("order") / "small.fllm"
    path.write_text(small_spec("llama", "f32", 4, DIRECTIVES))
    return str(path)


@pytest.fixture(scope="module")
def compiled(spec: str) -> Compiled:
    """Its plan."""
    return compile_spec(spec, mesh="pipe=2")


def test_the_plan_holds_every_turn_of_the_step(compiled: Compiled) -> None:
    found = {each.action for each in compiled.plan.timeline}
    wanted = {Action(kind, s, m) for kind in ("F", "I", "W") for s in range(2) for m in range(4)}
    assert found == wanted
    assert all(each.end > each.begin for each in compiled.plan.timeline if each.action.kind != "W")


def test_the_report_draws_it(compiled: Compiled) -> None:
    page = report_html("small", compiled.plan, dict(compiled.levels))
    assert page.count("micro-batch 3:") == 6
    assert "Order of work along pipe" in page


def test_the_memory_of_every_stage_is_told(compiled: Compiled, spec: str) -> None:
    sizes = [stage.arena_bytes for stage in compiled.plan.by_stage]
    assert len(set(sizes)) == 2
    page = report_html("small", compiled.plan, dict(compiled.levels))
    table = page[page.index("Memory of each stage") :]
    for position, size in enumerate(sizes):
        row = table[table.index(f"<tr><td>{position}</td>") :].split("</tr>")[0]
        assert row.endswith(f"<td>{bytes_text(size)}</td>")
    lines = run("inspect", spec, "--mesh", "pipe=2", "--memory").stdout.splitlines()
    told = [line.split(",")[0] for line in lines if line.startswith("pipe ")]
    largest = sizes.index(max(sizes))
    wanted = [f"pipe {at}: {bytes_text(size)}" for at, size in enumerate(sizes)]
    assert told == [*wanted, f"pipe {largest}"]
    told_data = document("compile", spec, "--mesh", "pipe=2", "--dry-run", "--json")
    assert told_data["stages"] == sizes


def test_without_a_pipeline_there_is_nothing_to_draw(spec: str, tmp_path: Path) -> None:
    plain = Path(spec).read_text().replace(DIRECTIVES, "")
    path = tmp_path / "plain.fllm"
    path.write_text(plain)
    found = compile_spec(str(path))
    assert found.plan.timeline == ()
    assert "Order of work" not in report_html("plain", found.plan, {})
    assert run("inspect", str(path), "--pipeline").stdout == "no pipeline\n"


def test_inspect_prints_it(spec: str) -> None:
    lines = run("inspect", spec, "--mesh", "pipe=2", "--pipeline").stdout.splitlines()
    assert [line.split(":")[0] for line in lines[::2]] == ["pipe 0", "pipe 1"]
    assert lines[1].strip() == "F0.0 F0.1 I0.0 W0.0 F0.2 I0.1 W0.1 F0.3 I0.2 W0.2 I0.3 W0.3"
