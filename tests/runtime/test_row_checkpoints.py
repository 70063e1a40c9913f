"""A run whose rows are frozen in part saves and loads each tensor as one, under its own name."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fllmc.driver import Compiled, compile_spec
from fllmc.runtime.checkpoint.load import open_latest
from fllmc.runtime.checkpoint.names import STATE_MARK
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import initialise, view_of
from fllmc.runtime.parts import expected, lasting_parts, rows_held
from fllmc.runtime.statuses import SUCCESS
from tests.runtime.small_run import SPEC, Made, assert_same, go, step_of, tensors, text
from tests.runtime.test_thaw import restored

FROZEN = {"embedding": slice(0, 100), "body.attn.wq": slice(4, 10)}
LINES = {
    "all": "tune *",
    "rows": "freeze embedding {\n    rows: (0, 100)\n  }\n"
    "  freeze body.*.attn.wq {\n    rows: (4, 10)\n  }",
    "fewer": "freeze embedding {\n    rows: (0, 40)\n  }\n"
    "  freeze body.*.attn.wq {\n    rows: (4, 10)\n  }",
    "none": "freeze embedding\n  freeze body.*.attn.wq",
}
ADAPTER = """adapter changed on small {
  LINE
}

train run: changed {
  precision: policy(params: f32, compute: bf16, reduce: f32)"""


@lru_cache
def _compiled(folder: Path, kind: str, mesh: str) -> Compiled:
    spec = folder / "small.fllm"
    changed = SPEC.replace("train run: small {", ADAPTER.replace("LINE", LINES[kind]))
    spec.write_text(changed.replace("MICROBATCHES", "1"))
    return compile_spec(str(spec), mesh)


def made(folder: Path, kind: str, mesh: str = "") -> Made:
    """The run with these lines in its adapter."""
    (folder / "text.txt").write_bytes(text())
    compiled = _compiled(folder, kind, mesh)
    return Made(compiled.plan, compiled.source, folder)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all runs here, with one of each kind two steps old."""
    folder = tmp_path_factory.mktemp("rows")
    for kind in LINES:
        assert go(made(folder, kind), kind, steps=2) == SUCCESS
    return folder


def frozen_rows(name: str, value: Tensor) -> Tensor:
    """The rows of a tensor that `rows` freezes; none of other tensors."""
    parts = name.partition(STATE_MARK)[0].split(".")
    plain = ".".join(part for part in parts if not part.isdigit())
    return value[FROZEN[plain]] if plain in FROZEN else value[:0]


def test_a_run_begins_as_if_all_trained(place: Path) -> None:
    """The numbers of a row depend on the whole's name and on its place there alone."""
    found: list[dict[str, Tensor]] = []
    for kind, mesh in (("all", ""), ("rows", ""), ("rows", "2x2")):
        run = made(place, kind, mesh)
        whole = {n: torch.zeros(shape) for n, (_, shape) in expected(run.plan).items()}
        for rank in range(run.plan.program.mesh.size):
            executor = Executor(run.plan, run.source, rank, object())  # type: ignore[arg-type]
            parts = lasting_parts(run.plan, rank)
            initialise(run.plan, executor, parts)
            for part in parts:
                whole[part.name][part.slices] = view_of(part, executor).float()
        found.append(whole)
    for name, value in found[0].items():
        frozen_rows(name, value).copy_(frozen_rows(name, value).bfloat16())
    assert_same(found[0], found[1])
    assert_same(found[0], found[2])


def test_tensors_are_those_of_a_run_that_trains_all(place: Path) -> None:
    kinds = {name: (value.dtype, value.shape) for name, value in tensors(place / "all").items()}
    mine = tensors(place / "rows")
    assert {name: (value.dtype, value.shape) for name, value in mine.items()} == kinds
    for name, value in mine.items():
        rows = frozen_rows(name, value)
        assert not rows.any() if STATE_MARK in name else torch.equal(rows, rows.bfloat16().float())


def test_frozen_rows_take_two_bytes_and_have_no_states(place: Path) -> None:
    checkpoint = open_latest(place / "rows" / "checkpoints").checkpoint
    held = rows_held(made(place, "rows").plan)
    assert held["embedding"] == ((0, 100, "bf16"), (100, 256, "f32"))
    assert held["body.1.attn.wq#m"] == ((0, 4, "f32"), (10, 16, "f32"))
    for name, rows in held.items():
        assert sorted(checkpoint.manifest.tensors[name].rows) == list(rows)
    saved = 16 * (100 * (2 + 8)) + 2 * 16 * (6 * (2 + 8))
    files = [
        sum(
            record.bytes
            for record in open_latest(place / k / "checkpoints").checkpoint.manifest.files.values()
        )
        for k in ("all", "rows")
    ]
    assert abs(files[0] - files[1] - saved) < 4096  # headers


@pytest.mark.parametrize("mesh", ["", "2x2"])
def test_the_same_rows_go_on_to_the_bit(place: Path, mesh: str) -> None:
    whole, warnings = restored(made(place, "rows", mesh), "rows")
    mine = tensors(place / "rows")
    for name, value in whole.items():
        if STATE_MARK in name:
            frozen_rows(name, value).zero_()
    assert_same(mine, {name: value.float() for name, value in whole.items()})
    assert warnings == ()


@pytest.mark.parametrize("mesh", ["", "2x2"])
@pytest.mark.parametrize(
    ("before", "after", "codes"),
    [
        ("all", "rows", ["W0702", "W0704"]),
        ("rows", "all", ["W0702", "W0703"]),
        ("none", "rows", ["W0702", "W0703"]),
        ("rows", "none", ["W0702", "W0704"]),
        ("rows", "fewer", ["W0702", "W0703"]),
        ("fewer", "rows", ["W0702", "W0704"]),
    ],
)
def test_runs_go_on_with_other_rows(
    place: Path, before: str, after: str, codes: list[str], mesh: str
) -> None:
    kept, run = tensors(place / before), made(place, after, mesh)
    whole, warnings = restored(run, before)
    assert [warning.code for warning in warnings] == codes
    assert whole.keys() == expected(run.plan).keys()
    held = rows_held(run.plan)
    for name, value in whole.items():
        stretches = held.get(name, ((0, value.shape[0], ""),))
        for first, stop, dtype in stretches:
            if name in kept:
                wanted = kept[name][first:stop]
                wanted = wanted.bfloat16() if dtype == "bf16" else wanted
            else:
                wanted = torch.zeros_like(value[first:stop])
            assert torch.equal(value[first:stop].float(), wanted.to(value.dtype).float()), name


def test_a_run_goes_there_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert go(made(place, "all"), "both", steps=2) == SUCCESS
    before = tensors(place / "both")["embedding"]
    assert go(made(place, "rows"), "both", steps=4, resume=True, quiet=False) == SUCCESS
    told = capsys.readouterr().err
    assert [told.count(f"warning[W070{n}]") for n in (2, 3, 4)] == [1, 0, 1]
    after = tensors(place / "both")["embedding"]
    assert torch.equal(after[:100], before[:100].bfloat16().float())
    assert not torch.equal(after[100:], before[100:])
    assert go(made(place, "all"), "both", steps=6, resume=True, quiet=False) == SUCCESS
    assert step_of(place / "both") == 6
    told = capsys.readouterr().err
    assert [told.count(f"warning[W070{n}]") for n in (2, 3, 4)] == [1, 1, 0]
