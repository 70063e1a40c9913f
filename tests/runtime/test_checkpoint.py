"""A checkpoint is whole or absent, any change to it is found, and any mesh can read it."""

import itertools
import os
import random
import shutil
import threading
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from safetensors.torch import load_file
from torch import Tensor

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError, InternalError
from fllmc.runtime import errors
from fllmc.runtime.checkpoint import files, folders, manifest
from fllmc.runtime.checkpoint.boxes import Box, cover_fault
from fllmc.runtime.checkpoint.load import open_checkpoint, open_latest
from fllmc.runtime.checkpoint.manifest import Manifest
from fllmc.runtime.checkpoint.names import layer_path, state_path
from fllmc.runtime.checkpoint.save import Shard, layer_shards, save
from tests.runtime.stored import TENSORS, faults, position, same, save_alone


class Ranks:
    """Threads that stand for ranks, with an all-gather between them."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._barrier = threading.Barrier(size)
        self._values: list[Any] = [None] * size

    def gather(self, rank: int) -> Callable[[Any], list[Any]]:
        """The gather of one rank; values pass through JSON, as over a wire."""

        def call(value: Any) -> list[Any]:
            self._barrier.wait(20)
            self._values[rank] = msgspec.json.decode(msgspec.json.encode(value))
            self._barrier.wait(20)
            found = list(self._values)
            self._barrier.wait(20)
            return found

        return call

    def run(self, body: Callable[[int], None]) -> list[BaseException | None]:
        """Run `body` on every rank; what each raised."""
        raised: list[BaseException | None] = [None] * self.size

        def work(rank: int) -> None:
            try:
                body(rank)
            except Exception as error:
                raised[rank] = error

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        return raised


def cut(value: Tensor, rows: int, columns: int, row: int, column: int) -> tuple[Tensor, list[int]]:
    """The part of a tensor at a place of a grid over its first two dims; parts may be uneven."""
    offsets, part = [0] * value.dim(), value
    for dim, (count, index) in enumerate(((rows, row), (columns, column))[: value.dim()]):
        bounds = [value.shape[dim] * i // count for i in range(count + 1)]
        part = part.narrow(dim, bounds[index], bounds[index + 1] - bounds[index])
        offsets[dim] = bounds[index]
    return part, offsets


def save_on_grid(folder: Path, rows: int, columns: int, tensors: dict[str, Tensor]) -> Path:
    """Save from `rows * columns` ranks; a vector's copies along columns are not owned."""
    ranks = Ranks(rows * columns)

    def body(rank: int) -> None:
        row, column = divmod(rank, columns)
        shards = []
        for name, value in tensors.items():
            part, offsets = cut(value, rows, columns, row, column)
            replica = (value.dim() < 2 and column > 0) or (value.dim() == 0 and row > 0)
            shards.append(Shard(name, part, tuple(value.shape), tuple(offsets), not replica))
        save(folder, position(7), shards, rank=rank, gather=ranks.gather(rank))

    assert ranks.run(body) == [None] * ranks.size
    latest = folders.find_latest(folder)
    assert latest is not None
    return latest


def test_round_trip(tmp_path: Path) -> None:
    path = save_alone(tmp_path / "ckpt")
    assert path.name == "step-00000100"
    assert sorted(os.listdir(path)) == ["manifest.json", "rank-00000.safetensors"]
    with open_checkpoint(path) as checkpoint:
        assert checkpoint.position == position(100)
        same(checkpoint, TENSORS)


def test_a_piece_file_is_an_ordinary_safetensors_file(tmp_path: Path) -> None:
    record = files.write_pieces(tmp_path / "x", TENSORS)
    stored = load_file(tmp_path / "x")
    assert all(torch.equal(stored[name], value) for name, value in TENSORS.items())
    assert record.bytes == (tmp_path / "x").stat().st_size
    assert record.sha256 == files.hash_file(tmp_path / "x")


def test_large_tensors_are_written_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = files.write_pieces(tmp_path / "x", TENSORS)
    monkeypatch.setattr(files, "_CHUNK", 5)
    assert files.write_pieces(tmp_path / "x", TENSORS) == whole


@pytest.mark.parametrize("grid", [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2)])
def test_any_mesh_reads_any_mesh(tmp_path: Path, grid: tuple[int, int]) -> None:
    path = save_on_grid(tmp_path, *grid, TENSORS)
    with open_checkpoint(path) as checkpoint:
        same(checkpoint, TENSORS)
        for (rows, columns), (name, value) in itertools.product(
            ((1, 2), (4, 1), (3, 3)), TENSORS.items()
        ):
            for row, column in itertools.product(range(rows), range(columns)):
                part, offsets = cut(value, rows, columns, row, column)
                slices = [slice(o, o + n) for o, n in zip(offsets, part.shape, strict=True)]
                assert torch.equal(checkpoint.read(name, slices), part)


@given(st.data())
def test_any_slice(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    shape = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=3))
    value = torch.arange(prod(shape), dtype=torch.float32).reshape(shape)
    grid = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    folder = tmp_path_factory.mktemp("c")
    path = save_on_grid(folder, *grid, {"x": value})
    bounds = [sorted((data.draw(st.integers(0, n)), data.draw(st.integers(0, n)))) for n in shape]
    slices = tuple(slice(low, high) for low, high in bounds)
    with open_checkpoint(path) as checkpoint:
        assert torch.equal(checkpoint.read("x", slices), value[slices])
    shutil.rmtree(folder)


def test_stacked_tensors_are_stored_by_layer_and_read_into_views(tmp_path: Path) -> None:
    stack = torch.randn(3, 4, 2)
    shards = layer_shards("body.attn.wq", "body", stack, (6, 4, 2), (0, 0, 0))
    shards += layer_shards("body.attn.wq", "body", -stack, (6, 4, 2), (3, 0, 0))
    arena = torch.zeros(6, 4, 4)
    with open_checkpoint(save(tmp_path, position(1), shards)) as checkpoint:
        assert checkpoint.names() == [f"body.{i}.attn.wq" for i in range(6)]
        for i in range(6):
            checkpoint.read_into(layer_path("body.attn.wq", "body", i), arena[i, :, 1:3])
    assert torch.equal(arena[:, :, 1:3], torch.cat([stack, -stack]))
    assert arena[:, :, 0].eq(0).all() and arena[:, :, 3].eq(0).all()
    assert state_path("body.0.wq", "m") == "body.0.wq#m"


def test_saving_is_deterministic(tmp_path: Path) -> None:
    paths = [save_on_grid(tmp_path / name, 2, 2, TENSORS) for name in "ab"]
    contents = [{f.name: f.read_bytes() for f in path.iterdir()} for path in paths]
    assert contents[0] == contents[1]


def test_a_wrong_set_of_pieces_is_the_compilers_fault(tmp_path: Path) -> None:
    value = torch.zeros(4)
    for offsets in ((0,), (2,)):
        with pytest.raises(InternalError, match="pieces"):
            save(tmp_path, position(1), [Shard("x", value, (8,), offsets)])
    assert folders.committed(tmp_path) == []


@pytest.mark.parametrize(
    ("shape", "boxes", "good"),
    [
        ((4, 4), [((0, 0), (2, 4)), ((2, 0), (2, 4))], True),
        ((4, 4), [((0, 0), (2, 4)), ((2, 0), (2, 2)), ((2, 2), (2, 2))], True),
        ((4, 4), [((0, 0), (2, 4)), ((1, 0), (2, 4))], False),
        ((4, 4), [((0, 0), (2, 4))], False),
        ((4, 4), [((3, 0), (4, 4))], False),
        ((4, 4), [((0,), (16,))], False),
        ((2,), [((-1,), (2,))], False),
        ((), [((), ())], True),
        ((), [], False),
        ((0, 3), [], True),
    ],
)
def test_cover(shape: tuple[int, ...], boxes: list[Any], good: bool) -> None:
    assert (cover_fault(shape, [Box(*box) for box in boxes]) is None) == good


def test_any_changed_byte_is_found(tmp_path: Path) -> None:
    path = save_on_grid(tmp_path, 2, 1, TENSORS)
    rng = random.Random(3)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        places = [0, 7, 8, len(content) - 1, *rng.sample(range(len(content)), 60)]
        for place in places:
            changed = bytearray(content)
            changed[place] ^= 1 << rng.randrange(8)
            file.write_bytes(changed)
            (found,) = faults(lambda: open_checkpoint(path))
            assert isinstance(found, errors.CheckpointHash | errors.CheckpointManifest)
            assert file.name in found.message()
        file.write_bytes(content)
    open_checkpoint(path)


def test_any_other_length_is_found(tmp_path: Path) -> None:
    path = save_on_grid(tmp_path, 2, 1, TENSORS)
    for file in sorted(path.iterdir()):
        content = file.read_bytes()
        cuts = [b"", content[:5], content[: len(content) // 2], content[:-1], content + b"\n"]
        for wrong in cuts:
            file.write_bytes(wrong)
            (found,) = faults(lambda: open_checkpoint(path))
            assert isinstance(found, errors.CheckpointFileSize | errors.CheckpointManifest)
            assert file.name in found.message()
        file.write_bytes(content)


def test_missing_and_exchanged_files_are_found(tmp_path: Path) -> None:
    path = save_on_grid(tmp_path, 2, 1, TENSORS)
    one, two = sorted(path.glob("rank-*"))
    aside = tmp_path / "aside"
    one.rename(aside)
    (found,) = faults(lambda: open_checkpoint(path))
    assert isinstance(found, errors.CheckpointFileMissing)
    assert one.name in found.message() and "`body.0.wq`" in found.tensors
    one.symlink_to(aside)
    assert isinstance(faults(lambda: open_checkpoint(path))[0], errors.CheckpointFileMissing)
    one.unlink()
    two.rename(one)
    aside.rename(two)
    assert len(faults(lambda: open_checkpoint(path))) == 2
    (path / manifest.NAME).unlink()
    (found,) = faults(lambda: open_checkpoint(path))
    assert isinstance(found, errors.CheckpointManifest)


def forged(path: Path, **changed: Any) -> None:
    """Replace fields of a checkpoint's manifest, with a digest that fits."""
    content = manifest.decode((path / manifest.NAME).read_bytes())
    (path / manifest.NAME).write_bytes(manifest.encode(structs.replace(content, **changed)))


def piece_changed(content: Manifest, **changed: Any) -> dict[str, Any]:
    """The tensors of a manifest with the piece of `odd` changed."""
    entry = content.tensors["odd"]
    pieces = (structs.replace(entry.pieces[0], **changed),)
    return content.tensors | {"odd": structs.replace(entry, pieces=pieces)}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        (errors.CheckpointManifest, lambda m: {"schema": 99}),
        (errors.CheckpointManifest, lambda m: {"files": m.files | {"../x": m.files[FIRST]}}),
        (errors.CheckpointManifest, lambda m: {"tensors": piece_changed(m, file="../x")}),
        (
            errors.CheckpointManifest,
            lambda m: {
                "tensors": m.tensors | {"odd": structs.replace(m.tensors["odd"], dtype="q3")}
            },
        ),
        (errors.TensorCoverage, lambda m: {"tensors": piece_changed(m, shape=(5,))}),
        (errors.TensorCoverage, lambda m: {"tensors": piece_changed(m, offsets=(1,))}),
        (errors.CheckpointHeader, lambda m: {"tensors": piece_changed(m, key="none")}),
        (errors.CheckpointHeader, lambda m: {"tensors": piece_changed(m, key="flag@0")}),
    ],
)
def test_forged_manifests_are_refused(
    tmp_path: Path, kind: type[Diagnostic], change: Callable[[Manifest], dict[str, Any]]
) -> None:
    path = save_alone(tmp_path)
    forged(path, **change(manifest.decode((path / manifest.NAME).read_bytes())))
    assert {type(found) for found in faults(lambda: open_checkpoint(path))} == {kind}


FIRST = "rank-00000.safetensors"


def test_a_bad_header_behind_a_right_hash_is_refused(tmp_path: Path) -> None:
    path = save_alone(tmp_path)
    content = bytearray((path / FIRST).read_bytes())
    content[9] = ord("!")
    (path / FIRST).write_bytes(content)
    record = manifest.FileRecord(len(content), files.hash_file(path / FIRST))
    forged(path, files={FIRST: record})
    (found,) = faults(lambda: open_checkpoint(path))
    assert isinstance(found, errors.CheckpointHeader)


def test_tensors_that_the_plan_has_otherwise_are_named(tmp_path: Path) -> None:
    expected = {name: (files.DTYPE_NAMES[v.dtype], tuple(v.shape)) for name, v in TENSORS.items()}
    with open_checkpoint(save_alone(tmp_path)) as checkpoint:
        checkpoint.require(expected)
        changed = expected | {"odd": ("i32", (7,)), "flag": ("bool", (4,)), "embeding": ("f32", ())}
        del changed["embedding"]
        kinds = [type(found) for found in checkpoint.faults(changed)]
        assert kinds == [errors.TensorMissing, *[errors.TensorMismatch] * 2, errors.TensorExtra]
        assert "did you mean `embedding`?" in checkpoint.faults(changed)[0].helps()
        assert "i64[7]" in checkpoint.faults(changed)[2].message()
        faults(lambda: checkpoint.require(changed))
        (found,) = faults(lambda: checkpoint.read("od"))
        assert isinstance(found, errors.TensorMissing) and "`odd`" in found.helps()[0]


def test_the_newest_whole_one_is_found(tmp_path: Path) -> None:
    assert folders.find_latest(tmp_path / "none") is None
    (found,) = faults(lambda: open_latest(tmp_path / "none"))
    assert isinstance(found, errors.NoCheckpoint)
    paths = [save_alone(tmp_path, step) for step in (9, 10, 200)]
    (tmp_path / "step-00000300.1234abcd.tmp").mkdir()
    (tmp_path / "step-00000400").mkdir()
    (tmp_path / "notes.txt").write_text("")
    assert folders.find_latest(tmp_path) == paths[2]
    (paths[2] / FIRST).write_bytes(b"torn")
    latest = open_latest(tmp_path)
    assert latest.checkpoint.path == paths[1]
    assert [d.code for d in latest.skipped] == ["W0701"]
    assert "step-00000200" in latest.skipped[0].message()
    for path in paths[:2]:
        (path / FIRST).unlink()
    kinds = [type(d) for d in faults(lambda: open_latest(tmp_path))]
    damaged = [errors.CheckpointFileSize, *[errors.CheckpointFileMissing] * 2]
    assert kinds == [errors.NoCheckpoint, *damaged]


def test_old_ones_go_and_the_newest_stays(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save_alone(tmp_path, step, keep=2)
    (tmp_path / "step-00000009").mkdir()  # no manifest: not a checkpoint, so not counted
    assert [entry.step for entry in folders.committed(tmp_path)] == [3, 4]
    folders.prune(tmp_path, 0)
    assert [entry.step for entry in folders.committed(tmp_path)] == [4]
    assert not list(tmp_path.glob("*.tmp"))


def test_a_step_saved_again_counts_as_newer(tmp_path: Path) -> None:
    first, again = save_alone(tmp_path, 5), save_alone(tmp_path, 5)
    assert (first.name, again.name) == ("step-00000005", "step-00000005.r1")
    later = save_alone(tmp_path, 6)
    assert [entry.path for entry in folders.committed(tmp_path)] == [first, again, later]
    assert folders.discard_after(tmp_path, 5) == [later]
    assert folders.find_latest(tmp_path) == again


def test_a_failed_write_fails_on_all_ranks_and_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = save_alone(tmp_path, 1)

    def full(path: Path, tensors: object) -> manifest.FileRecord:
        if path.name == "rank-00001.safetensors":
            raise OSError(28, "No space left on device")
        return files.write_pieces(path, TENSORS)

    monkeypatch.setattr("fllmc.runtime.checkpoint.save.write_pieces", full)
    ranks = Ranks(2)
    raised = ranks.run(
        lambda rank: void(save(tmp_path, position(2), [], rank=rank, gather=ranks.gather(rank)))
    )
    for error in raised:
        assert isinstance(error, DiagnosticError)
        (found,) = error.diagnostics
        assert isinstance(found, errors.SaveFailed)
        assert "rank 1: No space left on device" in found.message()
    assert os.listdir(tmp_path) == [before.name]


def void(value: object) -> None:
    """Drop a value."""


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (found,) = faults(lambda: save_alone(tmp_path / "file"))
    assert isinstance(found, errors.SaveFailed)
