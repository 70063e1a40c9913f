"""Foreign folders: what is imported is what stands there, what is exported is what was imported."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fllmc.frontend import load
from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.foreign import Foreign
from fllmc.ir.render import render
from fllmc.runtime.checkpoint.load import Checkpoint, open_checkpoint
from fllmc.runtime.foreign.exporting import export
from fllmc.runtime.foreign.folder import open_folder, read_config
from fllmc.runtime.foreign.importing import FOREIGN, import_folder
from fllmc.runtime.foreign.reading import open_reader
from fllmc.runtime.foreign.verifying import rows, verify
from tests.runtime.foreign_specs import CONFIG, folder, spec_text, tensors


def mapping(config: dict[str, Any] | None = None) -> Foreign:
    spec, found, sources = load("all.fllm", text=spec_text(), config=config or CONFIG)
    assert spec is not None and spec.foreign is not None, render(found, sources)
    kinds = {p.name for p in spec.program.parameters}
    assert "rest.2.scale" in kinds and "body.wq" in kinds
    return spec.foreign


def opened(tmp_path: Path, held: dict[str, Tensor]) -> Checkpoint:
    theirs = open_folder(folder(tmp_path / "theirs", held))
    return open_checkpoint(import_folder(mapping(), theirs, tmp_path / "ours").path)


def test_each_tensor_is_where_the_section_says(tmp_path: Path) -> None:
    held = tensors()
    with opened(tmp_path, held) as ours:
        qkv = held["h.1.qkv"].view(2, 4, 6, 8)
        assert torch.equal(ours.read("body.1.wq"), qkv[:, :2].reshape(4, 6, 8).permute(2, 0, 1))
        assert torch.equal(ours.read("body.1.wv"), qkv[:, 3].permute(2, 0, 1))
        turned = held["h.0.o"].view(8, 4, 2, 3).permute(1, 3, 2, 0).reshape(4, 6, 8)
        assert torch.equal(ours.read("body.0.wo"), turned)
        assert torch.equal(ours.read("body.0.turn"), held["h.0.turn"][:, 0].T)
        up = torch.stack([held[f"h.3.experts.{e}.up"].T for e in range(3)])
        assert torch.equal(ours.read("more.1.up"), up)
        gate = [
            held["h.3.experts.first"].view(8, 5),
            held["h.3.experts.second"],
            held["h.1.experts.third"].T,
        ]
        assert torch.equal(ours.read("more.1.gate"), torch.stack(gate))
        assert torch.equal(ours.read("more.1.bias"), held["bias.end"])
        for layer in range(5):
            assert torch.equal(ours.read(f"rest.{layer}.scale"), held[f"rest.{layer}.scale"])
        assert torch.equal(ours.read("rest.3.only"), held["rest.3.only"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_what_is_exported_is_what_was_imported(tmp_path: Path, dtype: torch.dtype) -> None:
    held = tensors(dtype)
    with opened(tmp_path, held) as ours:
        beside = tmp_path / "ours" / FOREIGN
        done = export(mapping(), ours, tmp_path / "back", beside, shard_bytes=2000)
    assert len(done.files) > 1
    back = {n: t for file in done.files for n, t in load_file(tmp_path / "back" / file).items()}
    assert back.keys() == held.keys()
    assert all(torch.equal(back[name], held[name]) for name in held)
    told = {**CONFIG, "dtype": {torch.bfloat16: "bfloat16"}.get(dtype, "float64")}
    assert read_config(tmp_path / "back") == told
    assert not verify(mapping(), open_folder(tmp_path / "back")).faults


def test_any_slice_of_a_folder_is_the_slice_of_the_whole(tmp_path: Path) -> None:
    theirs = open_folder(folder(tmp_path / "theirs", tensors()))
    reader = open_reader(mapping(), theirs)
    generator = torch.Generator().manual_seed(1)
    for name, (_, shape) in reader.kinds().items():
        whole = reader.read(name, [slice(0, size) for size in shape])
        for _ in range(3):
            ends = [torch.randint(0, n + 1, (2,), generator=generator).sort()[0] for n in shape]
            slices = [slice(int(a), max(int(a) + 1, int(b))) for a, b in ends]
            slices = [s if s.stop <= n else slice(0, n) for s, n in zip(slices, shape, strict=True)]
            assert torch.equal(reader.read(name, slices), whole[tuple(slices)]), (name, slices)


def test_a_checkpoint_from_nothing_has_a_whole_configuration(tmp_path: Path) -> None:
    with opened(tmp_path, tensors()) as ours:
        export(mapping(), ours, tmp_path / "back", None, dtype="bf16")
    config = read_config(tmp_path / "back")
    sizes = {"text": {"n_embd": 8}, "vocab_size": 10, "head_dim": 6}
    assert config == {**sizes, "act": "silu", "dtype": "bfloat16"}


def test_the_table_names_both_sides() -> None:
    found = {row.ours: (row.foreign, row.shape) for row in rows(mapping())}
    assert found["embedding"] == ("wte = head", "[10, 8]")
    assert found["more.{i}.up[e]"] == ("h.{i + 2}.experts.{e}.up", "[5, 8]")
    assert found["body.{i}.wq, body.{i}.wk, body.{i}.wv"] == ("h.{i}.qkv", "[48, 8]")


def test_names_of_one_parameter_may_both_be_there(tmp_path: Path) -> None:
    held = tensors()
    with opened(tmp_path, {**held, "head": held["wte"]}) as ours:
        assert torch.equal(ours.read("embedding"), held["wte"])
    twice = {n: t for n, t in held.items() if n != "wte"} | {"head": held["wte"]}
    theirs = open_folder(folder(tmp_path / "tied", twice))
    read = open_reader(mapping(), theirs).read("embedding", [slice(0, 10), slice(0, 8)])
    assert torch.equal(read, held["wte"])


Spoil = Callable[[dict[str, Tensor]], dict[str, Tensor]]
FAULTS: dict[str, tuple[str, str, Spoil]] = {
    "missing": ("E0743", "h.1.o", lambda t: {n: v for n, v in t.items() if n != "h.1.o"}),
    "extra": ("E0744", "h.1.q", lambda t: {**t, "h.1.q": torch.zeros(3)}),
    "shape": ("E0746", "h.1.o", lambda t: {**t, "h.1.o": torch.zeros(24, 8)}),
    "dtype": ("E0746", "h.1.o", lambda t: {**t, "h.1.o": torch.zeros(8, 24, dtype=torch.int8)}),
    "tied": ("E0750", "head", lambda t: {**t, "head": t["wte"] + 1}),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_wrong_tensor_is_named_with_its_file(kind: str, tmp_path: Path) -> None:
    code, name, spoil = FAULTS[kind]
    theirs = open_folder(folder(tmp_path / "theirs", spoil(tensors())))
    with pytest.raises(DiagnosticError) as caught:
        import_folder(mapping(), theirs, tmp_path / "ours")
    (found,) = caught.value.diagnostics
    assert found.code == code and f"`{name}`" in found.message()
    assert not (tmp_path / "ours").exists()
    if kind != "missing":
        assert "model-" in found.message() + "".join(found.notes())


def test_what_is_ignored_may_be_there(tmp_path: Path) -> None:
    theirs = open_folder(folder(tmp_path / "theirs", {**tensors(), "h.0.mask": torch.ones(2)}))
    assert import_folder(mapping(), theirs, tmp_path / "ours").tensors == 26


def refused(path: Path) -> tuple[str, str]:
    with pytest.raises(DiagnosticError) as caught:
        open_folder(path)
    found = caught.value.diagnostics[0]
    return found.code, found.message() + "".join(found.notes())


def test_a_damaged_file_is_named_with_its_tensors(tmp_path: Path) -> None:
    path = folder(tmp_path / "theirs", tensors())
    file = path / "model-1.safetensors"
    whole = file.read_bytes()
    for content in (whole[:-7], whole[:5], b"", b"\xff" * 40, whole[:8] + b"[" + whole[9:]):
        file.write_bytes(content)
        code, text = refused(path)
        assert code == "E0742" and "model-1.safetensors" in text and "`bias.start`" in text
    file.unlink()
    assert refused(path)[0] == "E0741"


def test_a_tensor_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "theirs", tensors(), shards=1)
    file = path / "model-0.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = whole[8 : 8 + size].replace(b'"bias.start"', b'"bias.end"')
    twice = header + b" " * (-len(header) % 8)
    file.write_bytes(len(twice).to_bytes(8, "little") + twice + whole[8 + size :])
    assert refused(path)[0] == "E0745"
    other = folder(tmp_path / "other", {"a": torch.zeros(1)}, shards=1)
    (other / "model.safetensors.index.json").unlink()
    save_file({"a": torch.zeros(1)}, other / "model-1.safetensors")
    code, text = refused(other)
    assert code == "E0745" and "model-0" in text and "model-1" in text


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    code, text = refused(tmp_path)
    assert code == "E0740" and "pytorch_model.bin" in text
    assert refused(tmp_path / "nowhere")[0] == "E0740"


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    path = folder(tmp_path / "theirs", tensors())
    index = path / "model.safetensors.index.json"
    told = msgspec.json.decode(index.read_bytes())
    for weight_map in (
        {**told["weight_map"], "none": "model-1.safetensors"},
        [],
        {"a": "../x.safetensors"},
    ):
        index.write_bytes(msgspec.json.encode({"weight_map": weight_map}))
        assert refused(path)[0] == "E0741"
    index.write_text("{")
    assert refused(path)[0] == "E0741"


@pytest.mark.parametrize(
    ("config", "code"),
    [
        ({**CONFIG, "act": "gelu"}, "E0748"),
        ({**CONFIG, "vocab_size": "10"}, "E0749"),
        ({"text": {"n_embd": 8}, "act": "silu"}, "E0747"),
    ],
)
def test_a_configuration_of_another_model_is_refused(config: dict[str, Any], code: str) -> None:
    spec, found, _ = load("all.fllm", text=spec_text(), config=config)
    assert spec is None
    assert [each.code for each in found if each.severity == "error"] == [code]


def test_what_is_not_read_of_a_configuration_is_said() -> None:
    config = {name: value for name, value in CONFIG.items() if name != "act"}
    _, found, _ = load("all.fllm", text=spec_text(), config=config)
    assert {each.code: each.message() for each in found if "W07" in each.code} == {
        "W0707": "1 key(s) of the configuration are not read: `x`",
        "W0708": "the configuration does not state `act`: taken as the spec says",
    }
