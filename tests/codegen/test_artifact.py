"""An artifact is read back as it was written, or refused; nothing in it is ever executed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from fllmc.codegen.artifact import (
    MANIFEST,
    MAX_FILE_BYTES,
    PLAN,
    SCHEDULE,
    Artifact,
    read_artifact,
    sha256,
    write_artifact,
)
from fllmc.driver import Compiled, compile_spec
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.text import load_program

SHOUT = "raise SystemExit('executed')\n"


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    return compile_spec("tiny_llama", "", {"data.batch": "2", "data.seq": "4"})


def write(folder: Path, compiled: Compiled) -> Artifact:
    sources = compiled.spec.sources
    return write_artifact(folder, "tiny", compiled.plan, sources, compiled.levels, "1.0")


@pytest.fixture
def folder(tmp_path: Path, compiled: Compiled) -> Path:
    write(tmp_path / "tiny.fllmx", compiled)
    return tmp_path / "tiny.fllmx"


def refused(folder: Path) -> str:
    """The code with which the artifact is refused."""
    with pytest.raises(DiagnosticError) as raised:
        read_artifact(folder)
    (found,) = raised.value.diagnostics
    assert found.message()
    return found.code


def edit(path: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change a JSON file."""
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def rehash(folder: Path) -> None:
    """What a careful forger does: every hash of the manifest is right again."""
    manifest = json.loads((folder / MANIFEST).read_text())
    for name in manifest["files"]:
        manifest["files"][name] = sha256((folder / name).read_bytes())
    manifest["plan_sha256"] = manifest["files"][PLAN]
    (folder / MANIFEST).write_text(json.dumps(manifest))


def test_round_trip(folder: Path, compiled: Compiled) -> None:
    found = read_artifact(folder)
    assert (found.name, found.plan, found.source) == ("tiny", compiled.plan, compiled.source)
    assert dict(found.manifest.sources) == dict(compiled.spec.sources)
    for level in found.manifest.levels:
        text = (folder / "levels" / f"{level}.fir").read_text()
        assert load_program(text, level).level == level


def test_the_same_plan_gives_the_same_bytes(
    folder: Path, tmp_path: Path, compiled: Compiled
) -> None:
    write(tmp_path / "other", compiled)
    one, two = (
        {p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()}
        for top in (folder, tmp_path / "other")
    )
    assert one == two


def test_an_artifact_replaces_an_artifact_and_nothing_else(
    folder: Path, tmp_path: Path, compiled: Compiled
) -> None:
    (folder / "levels" / "old.fir").write_text("")
    write(folder, compiled)
    read_artifact(folder)
    other = tmp_path / "precious"
    other.mkdir()
    (other / "thesis.tex").write_text("years")
    with pytest.raises(DiagnosticError):
        write(other, compiled)
    assert [p.name for p in other.iterdir()] == ["thesis.tex"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["precious", "tiny.fllmx"]


@pytest.mark.parametrize("name", [PLAN, SCHEDULE, MANIFEST, "report.html", "levels/model.fir"])
def test_a_missing_file(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert refused(folder) == "E0720"


def test_no_artifact(tmp_path: Path) -> None:
    assert refused(tmp_path) == "E0720"
    assert refused(tmp_path / "nowhere") == "E0720"
    (tmp_path / "file").write_text("")
    assert refused(tmp_path / "file") == "E0720"


@pytest.mark.parametrize("name", [PLAN, SCHEDULE, "report.html", "levels/plan.fir"])
def test_a_changed_file(folder: Path, name: str) -> None:
    with (folder / name).open("a") as file:
        file.write("\n")
    assert refused(folder) == "E0722"


def test_code_that_does_not_follow_from_the_plan(folder: Path) -> None:
    (folder / SCHEDULE).write_text(SHOUT + (folder / SCHEDULE).read_text())
    rehash(folder)
    assert refused(folder) == "E0722"


@pytest.mark.parametrize("name", ["schedule/torch.py", "extra.txt", "levels/other.fir"])
def test_a_stranger_in_the_folder(folder: Path, name: str) -> None:
    (folder / name).write_text(SHOUT)
    assert refused(folder) == "E0723"


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a\0b", "x" * 5000, "levels/x.fir"])
def test_a_manifest_that_lists_other_files(folder: Path, name: str) -> None:
    (folder.parent / "secret").write_text("secret")
    edit(folder / MANIFEST, lambda m: m["files"].update({name: sha256(b"secret")}))  # type: ignore[attr-defined]
    assert refused(folder) == "E0721"


@pytest.mark.parametrize("level", ["../../secret", "model/../model", ""])
def test_a_manifest_with_odd_levels(folder: Path, level: str) -> None:
    edit(folder / MANIFEST, lambda m: m.update(levels=[level]))
    assert refused(folder) == "E0721"


@pytest.mark.parametrize("name", [PLAN, MANIFEST])
@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"schema": 1}',
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"plan": 1e999999}',
    ],
    ids=range(9),
)
def test_malformed_json(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    if name == PLAN:
        rehash(folder)
    assert refused(folder) == "E0721"


def test_a_huge_file(folder: Path) -> None:
    with (folder / PLAN).open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    assert refused(folder) == "E0721"


@pytest.mark.parametrize("name", [PLAN, SCHEDULE, MANIFEST])
def test_a_link_out_of_the_folder(folder: Path, name: str) -> None:
    outside = folder.parent / "outside"
    outside.write_bytes((folder / name).read_bytes())
    (folder / name).unlink()
    (folder / name).symlink_to(outside)
    assert refused(folder) == "E0721"


def test_links_among_strangers(folder: Path) -> None:
    (folder / "more").symlink_to(folder.parent)
    assert refused(folder) == "E0723"


def test_a_link_in_a_circle(folder: Path) -> None:
    (folder / PLAN).unlink()
    (folder / PLAN).symlink_to(folder / PLAN)
    assert refused(folder) == "E0721"


def test_another_schema(folder: Path) -> None:
    edit(folder / MANIFEST, lambda m: m.update(schema="fllmc.plan/999"))
    assert refused(folder) == "E0721"


def forged(folder: Path, change: Callable[[dict[str, object]], object]) -> str:
    """The code that a plan gets which was changed, with all hashes right."""
    edit(folder / PLAN, change)
    rehash(folder)
    return refused(folder)


@pytest.mark.parametrize("field", ["arena_bytes", "frame_base"])
def test_a_plan_with_other_memory(folder: Path, field: str) -> None:
    assert forged(folder, lambda plan: plan.update({field: plan[field] + 64})) == "E0721"  # type: ignore[operator]


def test_a_plan_with_another_schema(folder: Path) -> None:
    assert forged(folder, lambda plan: plan.update(schema="fllmc.plan/2")) == "E0721"


def test_a_plan_with_missing_frames(folder: Path) -> None:
    assert forged(folder, lambda plan: plan.update(frames=[])) == "E0721"


def test_a_plan_with_unknown_fields(folder: Path) -> None:
    assert forged(folder, lambda plan: plan.update(surprise=1)) == "E0721"


def test_a_plan_whose_program_is_invalid(folder: Path) -> None:
    def change(plan: dict[str, object]) -> None:
        functions = plan["program"]["functions"]  # type: ignore[index]
        functions[0]["results"] = [10_000]

    assert forged(folder, change) == "E0721"


def test_a_plan_whose_names_are_code(folder: Path) -> None:
    text = (folder / PLAN).read_text()
    (folder / PLAN).write_text(text.replace('"tokens"', json.dumps("x\nraise SystemExit\n")))
    rehash(folder)
    assert refused(folder) == "E0721"
