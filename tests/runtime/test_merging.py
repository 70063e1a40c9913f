"""Merged weights make the plain model what the adapted one is; unmerged ones are the base again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fllmc.driver import Compiled, compile_spec
from fllmc.runtime.checkpoint.load import open_latest
from fllmc.runtime.executor import Executor
from fllmc.runtime.initialise import view_of
from fllmc.runtime.merging import bases, updated
from fllmc.runtime.parts import lasting_parts
from fllmc.runtime.sampling import Logits, next_logits
from tests.cli.running import run
from tests.runtime.small_run import SPEC, text

ADAPTER = """adapter tuned on small {
  freeze *
  lora * {
    rank: 2
    alpha: 3
  }
  tune final_norm.scale
}

"""
BOUND = {"f64": 1e-11, "f32": 1e-5}


class Trained:
    """The folder of a run with updates on every map, two steps old, and its spec.

    Among the maps is the embedding, looked up and applied transposed.
    """

    def __init__(self, folder: Path, precision: str) -> None:
        self.precision, self.folder = precision, folder / "run"
        (folder / "text.txt").write_bytes(text())
        plain = SPEC.replace("MICROBATCHES", "1").replace("  param head: embed -> vocab\n", "")
        plain = plain.replace("return head(", "return embedding.T(")
        plain = plain.replace("rate:", f"precision: {precision}\n  rate:")
        plain = plain.replace("floor: 1e-3, warmup: 2", "floor: 1e-2, warmup: 0")
        begin = plain.index("train run")
        adapted = plain[:begin] + ADAPTER + plain[begin:].replace("run: small", "run: tuned")
        self.specs = folder / "plain.fllm", folder / "tuned.fllm"
        for file, content in zip(self.specs, (plain, adapted), strict=True):
            file.write_text(content)
        output = str(self.folder)
        done = run("run", str(self.specs[1]), "-o", output, "--steps", "2", "--threads", "1", "-q")
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
        assert "15 updates" in done.stdout
        return load_file(out)


@pytest.fixture(scope="module", params=["f64", "f32"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("merge"), request.param)


def logits(compiled: Compiled, weights: dict[str, Tensor]) -> Logits:
    """What a plan predicts with these weights, which must be all of its parameters."""
    executor = Executor(compiled.plan, compiled.source)
    parts = [part for part in lasting_parts(compiled.plan, 0) if part.stored.role == "param"]
    assert {part.name for part in parts} <= set(weights)
    for part in parts:
        view_of(part, executor).copy_(weights[part.name])
    with torch.no_grad():
        return next_logits(compiled.plan, executor, list(range(1, 9)), None)


def test_the_plain_model_with_merged_weights_is_the_adapted_one(trained: Trained) -> None:
    plain, adapted = (compile_spec(str(spec)) for spec in trained.specs)
    stored = trained.stored()
    wanted, merged = logits(adapted, stored), trained.merge()
    parameters = [p for p in lasting_parts(plain.plan, 0) if p.stored.role == "param"]
    assert sorted(merged) == sorted(part.name for part in parameters)
    np.testing.assert_allclose(logits(plain, merged), wanted, rtol=0, atol=BOUND[trained.precision])
    base = logits(plain, {name: stored[name] for name in merged})
    assert np.abs(base - wanted).max() > 1e-3


def test_unmerged_weights_are_the_base_up_to_two_roundings(trained: Trained) -> None:
    """Half a unit in the last place of the merged weight, and half of one of the base."""
    stored, merged = trained.stored(), trained.merge()
    file = trained.folder.parent / "merged.safetensors"
    save_file(merged, file)
    undone = trained.merge("--undo", str(file))
    assert undone.keys() == merged.keys()
    for name, found in undone.items():
        base = stored[name].numpy()
        if f"{name}.lora_a" not in stored:
            assert np.array_equal(found.numpy(), base)
            continue
        assert not np.array_equal(merged[name].numpy(), base)
        places = [np.spacing(np.abs(w)) for w in (merged[name].numpy(), found.numpy(), base)]
        bound = (places[0] + np.maximum(places[1], places[2])) / 2
        assert np.all(np.abs(found.numpy() - base) <= bound), name


def test_updates_are_found_in_all_stages_of_a_pipeline(trained: Trained) -> None:
    tensor = "  shard (heads, kv_heads, ffn, vocab) over tensor\n"
    spec = trained.specs[1].read_text().replace(tensor, "")
    spec = spec.replace("over data", "over data\n  shard layers over pipe")
    staged = trained.folder.parent / "staged.fllm"
    staged.write_text(spec.replace("microbatches: 1", "microbatches: 2"))
    whole = compile_spec(str(trained.specs[1])).plan
    stages = compile_spec(str(staged), "data=1,pipe=2").plan
    assert len(stages.by_stage) == 2
    assert bases(stages) == bases(whole)
    one, other = updated(whole), updated(stages)
    assert len(one) == 15 and one.keys() == other.keys()
    for name, each in one.items():
        assert each.factor == other[name].factor == 1.5
        names = {f"{name}.lora_a", f"{name}.lora_b"}
        assert names == {p.name for p in each.parts} == {p.name for p in other[name].parts}


def faults() -> Iterator[tuple[str, dict[str, Tensor]]]:
    yield "E0708", {}
    yield "E0707", {"embedding": torch.zeros(3)}
    yield "E0709", {"other": torch.zeros(3)}


def test_a_file_of_another_model_is_refused(trained: Trained) -> None:
    file, out = (trained.folder.parent / name for name in ("bad.safetensors", "never"))
    arguments = ("merge", str(trained.folder), "--undo", str(file), "--out", str(out))
    assert "E0831" in run(*arguments).stderr
    for code, changed in faults():
        save_file(
            {**(trained.merge() if changed else {"embedding": torch.zeros(3)}), **changed}, file
        )
        done = run(*arguments)
        assert done.exit_code == 1 and code in done.stderr
    file.write_bytes(b"nothing")
    assert "E0706" in run(*arguments).stderr
    file.unlink()
    assert not out.exists()
    assert "E0731" in run("merge", str(file.parent), "--out", str(out)).stderr
