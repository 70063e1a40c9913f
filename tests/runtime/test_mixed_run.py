"""A run on a mixture of documents, turns and middles: in two parts as in one, on two meshes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fllmc.runtime.metrics import read_metrics
from fllmc.runtime.statuses import SUCCESS
from tests.runtime.small_run import SPEC, assert_same, compile_in, go, tensors

DATA = """data prose {
  source: "text.txt"
  pack: documents
  end: 10
  fim: fim(rate: 0.5, prefix: 1, suffix: 2, middle: 3)
}

data talk {
  source: "talk.jsonl"
  pack: whole
  chat: turns(open: "<{role}>", close: "\\n")
}

data numbers {
  source: "numbers.bin"
}

data text {
  source: mix(prose: 0.5, talk: 0.3, numbers: 0.2)
  tokenizer: bytes
  batch: 8
  seq: 16
}
"""


def mixed(folder: Path) -> str:
    """The small run on several sources, which are written to the folder."""
    turns = [{"role": "user", "content": "Two?"}, {"role": "assistant", "content": "Four."}]
    record = json.dumps({"messages": turns})
    (folder / "talk.jsonl").write_text("".join(f"{record}\n" for _ in range(30)))
    (folder / "numbers.bin").write_bytes((np.arange(900, dtype="<u2") % 251).tobytes())
    begin, end = SPEC.index("data text {"), SPEC.index("train run")
    return SPEC[:begin] + DATA + "\n" + SPEC[end:]


def losses(folder: Path) -> list[float]:
    """The loss of each step, as recorded."""
    return [record["loss"] for record in read_metrics(folder / "metrics.jsonl")]


def test_in_two_parts_as_in_one(tmp_path: Path) -> None:
    run = compile_in(tmp_path, mixed(tmp_path))
    assert run.plan.data.pack == "documents" and len(run.plan.data.parts) == 3
    assert go(run, "whole") == SUCCESS
    assert go(run, "parts", steps=3) == SUCCESS
    assert go(run, "parts", resume=True) == SUCCESS
    assert_same(tensors(tmp_path / "whole"), tensors(tmp_path / "parts"))
    assert len(losses(tmp_path / "whole")) == 6


@pytest.mark.long
def test_on_a_mesh_as_on_one_device(tmp_path: Path) -> None:
    assert go(compile_in(tmp_path, mixed(tmp_path)), "one") == SUCCESS
    assert go(compile_in(tmp_path, mixed(tmp_path), "data=2"), "two") == SUCCESS
    one, two = losses(tmp_path / "one"), losses(tmp_path / "two")
    assert np.allclose(one, two, rtol=1e-5, atol=0)
