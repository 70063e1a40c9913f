"""Checkpoints of runs on several ranks merge as those of one rank do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fllmc.runtime.checkpoint.load import open_latest
from tests.cli.running import run
from tests.runtime.small_run import SPEC, text
from tests.runtime.test_merging import ADAPTER

MESHES = {
    "one": ("", ()),
    "tensor and zero 3": ("data=2,tensor=2", ("zero 3 over data",)),
    "stored apart": ("data=2,tensor=2", ("shard embed over data in *",)),
    "pipeline": ("data=1,pipe=2", ("shard layers over pipe", "microbatches: 2")),
}
MORE = {
    "rows": "tune final_norm.scale\n  tune embedding {\n    rows: (0, 64)\n  }",
}


class Trained:
    """Runs of one spec with updates on every map but on other meshes, two steps old."""

    def __init__(self, folder: Path, kind: str, more: str = "") -> None:
        self.folder, (mesh, lines) = folder / "run", MESHES[kind]
        (folder / "text.txt").write_bytes(text())
        spec = SPEC.replace("  microbatches: MICROBATCHES\n", "".join(f"  {x}\n" for x in lines))
        if kind == "pipeline":
            spec = spec.replace("  shard (heads, kv_heads, ffn, vocab) over tensor\n", "")
        spec = spec.replace("rate:", "precision: f64\n  rate:")
        spec = spec.replace("floor: 1e-3, warmup: 2", "floor: 1e-2, warmup: 0")
        begin = spec.index("train run")
        adapter = ADAPTER.replace("tune final_norm.scale", more or "tune final_norm.scale")
        spec = spec[:begin] + adapter + spec[begin:].replace("run: small", "run: tuned")
        file = folder / "tuned.fllm"
        file.write_text(spec)
        given = ("--mesh", mesh) if mesh else ()
        options = ("-o", str(self.folder), "--steps", "2", "--threads", "1", "-q")
        done = run("run", str(file), *given, *options)
        assert done.exit_code == 0, done.stderr

    def stored(self) -> dict[str, Tensor]:
        """The newest checkpoint."""
        checkpoint = open_latest(self.folder / "checkpoints").checkpoint
        return {name: checkpoint.read(name) for name in checkpoint.names()}

    def merge(self, *arguments: str) -> dict[str, Tensor]:
        """What `fllmc merge` writes."""
        out = self.folder.parent / "out.safetensors"
        done = run("merge", str(self.folder), *arguments, "--out", str(out))
        assert done.exit_code == 0, done.stderr
        return load_file(out)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """The merged weights of the run on one device."""
    return Trained(tmp_path_factory.mktemp("one"), "one").merge()


@pytest.mark.parametrize(
    "kind",
    ["tensor and zero 3", "pipeline", pytest.param("stored apart", marks=pytest.mark.long)],
)
def test_weights_merge_as_on_one_device(kind: str, one: dict[str, Tensor], tmp_path: Path) -> None:
    trained = Trained(tmp_path, kind)
    pieces = open_latest(trained.folder / "checkpoints").checkpoint.manifest.files
    assert len(pieces) > 1
    merged = trained.merge()
    assert merged.keys() == one.keys()
    for name, value in one.items():
        assert value.dtype == torch.float64
        np.testing.assert_allclose(merged[name].numpy(), value.numpy(), rtol=0, atol=1e-11)
    file = tmp_path / "merged.safetensors"
    save_file(merged, file)
    stored, undone = trained.stored(), trained.merge("--undo", str(file))
    changed = 0
    for name, value in undone.items():
        changed += not torch.equal(merged[name], stored[name])
        np.testing.assert_allclose(value.numpy(), stored[name].numpy(), rtol=0, atol=1e-15)
    assert changed == 16


@pytest.mark.long
def test_a_base_whose_rows_train_in_part_merges_whole(tmp_path: Path) -> None:
    trained = Trained(tmp_path, "tensor and zero 3", MORE["rows"])
    stored, merged = trained.stored(), trained.merge()
    base, a, b = (stored[f"embedding{part}"] for part in ("", ".lora_a", ".lora_b"))
    assert base.shape == merged["embedding"].shape == (256, 16)
    np.testing.assert_array_equal(merged["embedding"], base + 1.5 * (a @ b))
    assert stored["embedding#m"][:64].any() and not stored["embedding#m"][64:].any()
