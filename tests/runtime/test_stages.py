"""A run in stages: what changes at their borders, and that nothing else does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import pytest

from fllmc.codegen.artifact import read_artifact, write_artifact
from fllmc.driver import Compiled, compile_spec
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.runtime.launch import launch
from fllmc.runtime.metrics import read_metrics
from fllmc.runtime.statuses import SUCCESS
from tests.runtime.small_run import SPEC, assert_same, options, step_of, tensors, text

RUN = SPEC.replace("MICROBATCHES", "1").replace("  checkpoint_every: 2\n", "")
HALVES = RUN.replace("  steps: 6\n", "  stage a { steps: 2 }\n  stage b { steps: 4 }\n")
CHANGES = RUN.replace("train run", "MORE").replace(
    "  steps: 6\n",
    """  checkpoint_every: 1
  stage short { batch: ramp(2, 4) seq: 8 steps: 4 }
  stage other { data: more freeze: [embedding] rate: constant(peak: 5e-3) steps: 2 }
  stage last { steps: 2 }
""",
)
MORE = """data more {
  source: "text.txt"
  batch: 4
  seq: 16
  seed: 7
}

train run"""


class Staged(NamedTuple):
    compiled: Compiled
    folder: Path

    def go(self, name: str, **given: object) -> None:
        found = self.compiled
        chosen = options(self.folder, name, **given)
        assert launch(found.plan, found.source, chosen, None, found.later) == SUCCESS

    def losses(self, name: str) -> list[float]:
        return [record["loss"] for record in read_metrics(self.folder / name / "metrics.jsonl")]


def made(folder: Path, spec: str) -> Staged:
    (folder / "text.txt").write_bytes(text())
    path = folder / "small.fllm"
    path.write_text(spec)
    return Staged(compile_spec(str(path)), folder)


def test_stages_that_change_nothing_are_one_run(tmp_path: Path) -> None:
    whole, halves = made(tmp_path, RUN), made(tmp_path, HALVES)
    assert [part.train.stage for part in halves.compiled.plan.parts] == ["a", "b"]
    whole.go("whole")
    halves.go("halves")
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "halves"))
    assert whole.losses("whole") == halves.losses("halves")


def test_a_rate_counts_from_where_its_stage_begins(tmp_path: Path) -> None:
    plain = re.sub(r"optimizer: .*\n.*no_decay.*", "optimizer: sgd()", RUN)
    own = "rate: linear(peak: 1e-2, warmup: 2)"
    alone = re.sub(r"rate: .*", own, plain).replace("steps: 6", "steps: 4")
    still = "  stage still { data: more rate: constant(peak: 0.0) steps: 2 }\n"
    staged = plain.replace("  steps: 6\n", f"{still}  stage go {{ {own} steps: 4 }}\n")
    made(tmp_path, alone).go("alone")
    made(tmp_path, staged.replace("train run", MORE)).go("staged")
    assert_same(tensors(tmp_path / "alone"), tensors(tmp_path / "staged"))


def test_each_stage_has_what_it_asks_for_and_resumes_anywhere(tmp_path: Path) -> None:
    run = made(tmp_path, CHANGES.replace("MORE", MORE))
    parts = run.compiled.plan.parts
    assert [(p.train.begin, p.train.steps) for p in parts] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    assert [(p.data.batch, p.data.seq) for p in parts] == [(2, 8), (4, 8), (4, 16), (8, 16)]
    assert [p.train.first_sample for p in parts] == [0, 4, 0, 0]
    frozen = [{q.name for q in p.program.parameters if not q.trainable} for p in parts]
    assert frozen == [set(), set(), {"embedding"}, set()]
    run.go("whole")
    assert step_of(tmp_path / "whole") == 8
    for stop in (2, 5):
        run.go(f"stopped{stop}", steps=stop)
        assert step_of(tmp_path / f"stopped{stop}") == stop
        run.go(f"stopped{stop}", resume=True)
        assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / f"stopped{stop}"))
        assert run.losses("whole") == run.losses(f"stopped{stop}")


def test_an_artifact_holds_all_parts(tmp_path: Path) -> None:
    found = made(tmp_path, HALVES).compiled
    folder = tmp_path / "x.fllmx"
    write_artifact(folder, "x", found.plan, found.spec.sources, found.levels, "1")
    read = read_artifact(folder)
    assert (read.plan, read.source, read.later) == (found.plan, found.source, found.later)
    code = folder / "schedule" / "step_2.py"
    code.write_text(code.read_text() + "\n")
    with pytest.raises(DiagnosticError, match="step_2"):
        read_artifact(folder)
