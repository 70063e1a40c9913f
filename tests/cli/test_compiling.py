"""`compile`, `inspect` and `opt`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fllmc
from fllmc.cli import exits
from tests.cli.running import document, run
from tests.house.tree import ROOT

BUDGET = """
schedule tight {
  budget_gib: 0.05
}
"""
SMALL = ("--set", "dims.layers=2", "--set", "dims.embed=32", "--set", "dims.ffn=48")


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small quickstart, compiled for two devices."""
    folder = str(tmp_path_factory.mktemp("compiled") / "small.fllmx")
    done = run("compile", "quickstart", "--mesh", "2x1", *SMALL, "-o", folder)
    assert done.exit_code == 0, done.stderr
    return folder


def test_compile_says_how_it_read_the_mesh_first(tmp_path: Path) -> None:
    done = run("compile", "quickstart", "--mesh", "2x2", *SMALL, "-o", str(tmp_path / "a.fllmx"))
    reading, phases, *_ = done.stderr.splitlines()
    assert reading == "mesh 2x2 read as data=2,tensor=2: 4 devices, tensor innermost"
    assert phases.startswith("read and check ")
    assert all(level in phases for level in ("model", "training", "sharded", "plan"))
    assert "in all" in done.stdout
    assert (tmp_path / "a.fllmx" / "report.html").is_file()


def test_compile_as_data_adds_up(tmp_path: Path) -> None:
    told = document("compile", "quickstart", *SMALL, "--json", "-o", str(tmp_path / "a.fllmx"))
    memory = told["memory"]
    parts = sum(memory[part] for part in ("parameters", "optimizer", "data", "working"))
    assert parts == memory["arena"] >= memory["least"]
    assert told["artifact"] == str(tmp_path / "a.fllmx")
    assert told["fits"] is True


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "a.fllmx"
    assert document("compile", "quickstart", *SMALL, "-n", "--json")["artifact"] is None
    run("compile", "quickstart", *SMALL, "-n", "-o", str(folder))
    assert not folder.exists()


def test_what_does_not_fit_the_target_is_not_written(tmp_path: Path) -> None:
    folder = tmp_path / "a.fllmx"
    arguments = ("--set", "data.batch=4096", "--target", "cpu", "-o", str(folder))
    done = run("compile", "quickstart", *arguments)
    assert done.exit_code == exits.INFEASIBLE
    assert "error[E0401]: one rank of `quickstart` needs" in done.stderr
    assert "activations and gradients" in done.stderr
    assert not folder.exists()


def test_a_budget_that_cannot_be_met_is_infeasible(tmp_path: Path) -> None:
    spec, folder = tmp_path / "small.fllm", tmp_path / "a.fllmx"
    text = (ROOT / "specs" / "models" / "quickstart.fllm").read_text()
    spec.write_text(text + BUDGET)
    done = run("compile", str(spec), "--set", "data.batch=256", "-o", str(folder))
    assert done.exit_code == exits.INFEASIBLE
    assert "error[E0402]: a rank needs" in done.stderr
    assert "it fits with `microbatches: " in done.stderr
    assert not folder.exists()


@pytest.mark.parametrize(
    ("directive", "code", "way"),
    [
        ("microbatches: 3", "E0501", "`microbatches` can be 1, 2, 4, 8"),
        ("loss_chunks: 7", "E0503", "`loss_chunks` can be"),
        ("backward_chunks: 7", "E0503", "`backward_chunks` can be"),
        ("budget_gib: 0.001", "E0402", "too small"),
        ("offload body.*.attn\n  host_gib: 0", "E0403", "let `budget_gib` choose"),
        ("shard batch over wide", "E0310", "divides `batch`"),
        ("shard layers over wide\n  pipeline: interleaved", "E0521", "set `microbatches: "),
        ("shard layers over wide\n  pipeline: interleaved(chunks: 9)", "E0513", "at most 6"),
        ("shard layers over wide\n  pipeline: auto(memory: 0.01)", "E0421", "is the least"),
    ],
)
def test_a_directive_that_leaves_no_plan(
    tmp_path: Path, directive: str, code: str, way: str
) -> None:
    spec = tmp_path / "small.fllm"
    text = (ROOT / "specs" / "models" / "quickstart.fllm").read_text()
    text += f"\nmesh m {{ wide: 3 }}\nschedule s for learn on m {{\n  {directive}\n}}\n"
    spec.write_text(text)
    done = run("compile", str(spec), "-n")
    assert done.exit_code == exits.INFEASIBLE
    assert f"error[{code}]" in done.stderr
    assert f"{spec}:{len(text.splitlines()) - 1}:" in done.stderr or "\n" in directive
    assert f"{spec}:" in done.stderr
    assert way in done.stderr


def test_without_a_target_the_smallest_that_fits_is_planned_for(tmp_path: Path) -> None:
    small = document("compile", "quickstart", "-n", "--json")
    large = document("compile", "quickstart", "-n", "--json", "--set", "data.batch=4096")
    assert small["target"] == "cpu"
    assert large["target"] != "cpu"
    assert large["fits"]


def test_an_indivisible_mesh_names_the_sizes_that_work() -> None:
    done = run("compile", "quickstart", "--mesh", "3x1", "-n")
    assert done.exit_code == exits.INFEASIBLE
    assert "of size 1, 2, 4, 8 or 16 divides" in done.stderr or "divide" in done.stderr
    assert "Traceback" not in done.stderr


def test_dumps_are_the_programs_after_each_pass(tmp_path: Path) -> None:
    run("compile", "quickstart", *SMALL, "-n", "--dump-ir", str(tmp_path / "all"))
    names = sorted(path.name for path in (tmp_path / "all").iterdir())
    assert names[0] == "00-input.fir"
    assert any(name.endswith("-place.fir") for name in names)
    arguments = ("--dump-ir", str(tmp_path / "one"), "--dump-after", "place")
    run("compile", "quickstart", *SMALL, "-n", *arguments)
    (only,) = (tmp_path / "one").iterdir()
    assert only.read_text() == (tmp_path / "all" / only.name).read_text()


def test_a_folder_of_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "letters.txt").write_text("dear")
    done = run("compile", "quickstart", *SMALL, "-o", str(tmp_path))
    assert done.exit_code == 1
    assert (tmp_path / "letters.txt").read_text() == "dear"


def test_inspect_shows_what_compile_said(artifact: str) -> None:
    told = run("inspect", artifact)
    again = run("inspect", "quickstart", "--mesh", "2x1", *SMALL)
    assert told.exit_code == 0
    assert told.stdout == again.stdout


@pytest.mark.parametrize("level", ["model", "training", "sharded", "plan"])
def test_a_level_parses_back(artifact: str, level: str, tmp_path: Path) -> None:
    text = run("inspect", artifact, "--level", level).stdout
    assert text.startswith(f"program {level}\n")
    file = tmp_path / "level.fir"
    file.write_text(text)
    assert run("opt", str(file)).stdout == text


def test_parts_of_an_artifact(artifact: str) -> None:
    parts = ("--memory", "--collectives", "--placement", "--decisions")
    done = run("inspect", artifact, *parts)
    assert done.exit_code == 0
    assert "saved activations" in done.stdout
    assert "all_reduce" in done.stdout
    assert "body.attn.wq: f32[layers, embed, heads" in done.stdout
    assert "because" in done.stdout
    told = document("inspect", artifact, *parts, "--schedule", "--level", "plan", "--json")
    assert told["schedule"] == (Path(artifact) / "schedule" / "step.py").read_text()
    assert {"frames", "sites", "stored", "decisions", "level"} <= set(told)


def test_an_artifact_is_not_compiled_again(artifact: str) -> None:
    assert run("inspect", artifact, "--mesh", "2x1").exit_code == exits.USAGE


def test_a_changed_artifact_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "a.fllmx"
    run("compile", "quickstart", *SMALL, "-o", str(folder))
    step = folder / "schedule" / "step.py"
    step.write_text(step.read_text() + "\nprint('mine')\n")
    done = run("inspect", str(folder))
    assert done.exit_code == 1
    assert "error[E0722]" in done.stderr


def test_opt_runs_passes_on_text(tmp_path: Path) -> None:
    inlined = run("opt", "quickstart", "--passes", "inline")
    assert inlined.exit_code == 0
    assert " = call{" not in inlined.stdout
    file = tmp_path / "inlined.fir"
    file.write_text(inlined.stdout)
    shared = run("opt", "--passes", "share-equal,drop-unused", "-v", str(file))
    assert shared.exit_code == 0
    assert "share-equal" in shared.stderr
    assert (
        shared.stdout
        == run("opt", "quickstart", "--passes", "inline,share-equal,drop-unused").stdout
    )


def test_opt_shows_where_a_pipeline_is_wrong() -> None:
    done = run("opt", "quickstart", "--passes", "inline,share-eqal")
    assert done.exit_code == 1
    assert "inline,share-eqal" in done.stderr
    assert "help: did you mean `share-equal`?" in done.stderr


def test_opt_shows_where_a_program_is_wrong() -> None:
    done = run("opt", "-", given="program modle\n")
    assert done.exit_code == 1
    assert "<stdin>:1:9" in done.stderr


def test_diagnostics_of_passes_show_the_spec() -> None:
    done = run("compile", "quickstart", "--mesh", "32x1", "-n", "--format", "json")
    assert done.exit_code == exits.INFEASIBLE
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["span"]["file"].endswith(".fllm")


def test_the_python_interface_is_the_driver() -> None:
    compiled = fllmc.compile("quickstart", mesh="2x1")
    assert compiled.plan.program.mesh.size == 2
    with pytest.raises(AttributeError):
        fllmc.nothing  # noqa: B018
