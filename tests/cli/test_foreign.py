"""`fllmc import`, `export` and `ckpt verify`, from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.cli.running import run
from tests.runtime.foreign_specs import folder, spec_text, tensors


def test_there_and_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("all.fllm").write_text(spec_text())
    held = tensors()
    folder(Path("theirs"), held)
    done = run("import", "all.fllm", "theirs", "-o", "ours")
    assert done.exit_code == 0 and "1,928 parameters in 26 tensors" in done.stdout, done.stderr
    assert "warning[W0707]" in done.stderr
    done = run("export", "ours", "-o", "back", "--shard-gb", "0.000004")
    assert done.exit_code == 0 and "30 tensors" in done.stdout, done.stderr
    index = json.loads(Path("back/model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert load_file(f"back/{sorted(files)[0]}").keys() <= held.keys()
    done = run("ckpt", "verify", "all.fllm", "back")
    assert done.exit_code == 0 and "body.{i}.wo" in done.stdout, done.stderr
    assert "30 tensors" in done.stderr
    done = run("import", "all.fllm", "theirs", "-o", "ours")
    assert done.exit_code == 1 and "error[E0752]" in done.stderr
    (tmp_path / "theirs" / "config.json").unlink()
    done = run("ckpt", "verify", "all.fllm", "theirs")
    assert done.exit_code == 1 and "config.json" in done.stderr
