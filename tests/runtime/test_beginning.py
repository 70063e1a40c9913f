"""Runs that begin with a checkpoint: every rank of every mesh has its part of what stands there."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fllmc.driver import compile_spec
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.plan import Plan
from fllmc.kernels import torch_ops as kernels
from fllmc.runtime.beginning import begin_from
from fllmc.runtime.executor import Executor
from fllmc.runtime.foreign.folder import open_folder
from fllmc.runtime.foreign.importing import import_folder
from fllmc.runtime.foreign.reading import entries, open_reader
from fllmc.runtime.initialise import view_of
from fllmc.runtime.parts import lasting_parts

SPEC = """fllm 1

import "models/tiny_llama.fllm" (tiny_llama, text)

adapter low on tiny_llama {
  freeze *
  lora *.attn.* { rank: 2 alpha: 4 }
}

adapter few on tiny_llama {
  freeze *
  tune *.scale
  quantize body.*.mlp.* { bits: 8 block: 16 }
}

train run: SUBJECT {
  data: text
  loss: cross_entropy()
  optimizer: adamw()
  rate: constant(peak: 1e-3)
  steps: 2
  precision: f32
}
"""


def compiled(tmp_path: Path, subject: str, mesh: str, more: dict[str, str] | None = None) -> Any:
    spec = tmp_path / f"{subject}.fllm"
    cut = "schedule cut for run { shard layers over pipe }" if "pipe" in mesh else ""
    spec.write_text(SPEC.replace("SUBJECT", subject) + cut)
    return compile_spec(str(spec), mesh, more)


def drawn(mapping: Foreign, path: Path) -> tuple[Path, dict[str, Tensor]]:
    """A foreign folder of random tensors, and ours out of them."""
    path.mkdir()
    torch.manual_seed(0)
    held = {entry.names[0]: torch.randn(entry.shape) for entry in entries(mapping)}
    save_file(held, path / "model.safetensors")
    (path / "config.json").write_text("{}")
    reader = open_reader(mapping, open_folder(path))
    kinds = reader.kinds()
    return path, {
        n: reader.read(n, [slice(0, s) for s in shape]) for n, (_, shape) in kinds.items()
    }


def begun(plan: Plan, source: str, path: Path, rank: int, run: Path) -> Executor:
    alone = plan.program.mesh.size == 1
    executor = Executor(plan, source, rank, None if alone else cast(Any, object()))
    begin_from(plan, path, executor, lasting_parts(plan, rank), rank, run)
    return executor


@pytest.mark.parametrize(
    ("subject", "mesh", "native"),
    [
        ("tiny_llama", "data=2,tensor=2", False),
        ("tiny_llama", "pipe=2", True),
        ("low", "tensor=2", False),
    ],
)
def test_each_rank_has_its_part(subject: str, mesh: str, native: bool, tmp_path: Path) -> None:
    made = compiled(tmp_path, subject, mesh)
    path, ours = drawn(made.plan.foreign, tmp_path / "theirs")
    if native:
        import_folder(made.plan.foreign, open_folder(path), tmp_path / "ckpt")
        path = tmp_path / "ckpt"
    seen: set[str] = set()
    for rank in range(made.plan.program.mesh.size):
        executor = begun(made.plan, made.source, path, rank, tmp_path)
        for part in lasting_parts(made.plan, rank):
            if part.stored.role == "param" and part.name in ours:
                seen.add(part.name)
                assert torch.equal(view_of(part, executor), ours[part.name][part.slices])
    assert seen == ours.keys()
    assert (tmp_path / "foreign" / "config.json").is_file()


def test_a_quantised_base_is_rounded_from_what_stands_there(tmp_path: Path) -> None:
    made = compiled(tmp_path, "few", "1")
    path, ours = drawn(made.plan.foreign, tmp_path / "theirs")
    executor = begun(made.plan, made.source, path, 0, tmp_path)
    views = {p.name: view_of(p, executor) for p in lasting_parts(made.plan, 0)}
    name = "body.0.mlp.up"
    codes, scales = views[f"{name}.codes"], views[f"{name}.scales"]
    whole = ours[name]
    at = next(d for d, (n, m) in enumerate(zip(codes.shape, scales.shape, strict=True)) if n != m)
    value = whole if at == 1 else whole.T
    blocks = value.reshape(-1, 16, 1).contiguous()
    wanted = torch.empty(blocks.shape, dtype=torch.int8), torch.empty(len(blocks), 1)
    kernels.quantize(blocks, 8, out=wanted)
    found = codes if at == 1 else codes.T
    assert torch.equal(found.reshape(-1, 16, 1), wanted[0])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    made = compiled(tmp_path, "tiny_llama", "1")
    other = compiled(tmp_path, "tiny_llama", "1", {"dims.layers": "3"})
    import_folder(
        other.plan.foreign,
        open_folder(drawn(other.plan.foreign, tmp_path / "theirs")[0]),
        tmp_path / "ckpt",
    )
    with pytest.raises(DiagnosticError) as caught:
        begun(made.plan, made.source, tmp_path / "ckpt", 0, tmp_path)
    codes = {found.code for found in caught.value.diagnostics}
    assert codes == {"E0709"}
    with pytest.raises(DiagnosticError) as caught:
        begun(made.plan, made.source, tmp_path / "theirs", 0, tmp_path)
    assert {found.code for found in caught.value.diagnostics} == {"E0744"}
