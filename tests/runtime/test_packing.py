"""Token files, JSON lines, documents kept apart or whole, mixtures, and middles filled in."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Chat, Data, FillMiddle
from fllmc.runtime import data_errors
from fllmc.runtime.data.dataset import Dataset, open_dataset
from fllmc.runtime.data.documents import Documents, Joined, Written, gathered
from fllmc.runtime.data.middle import Middles, rearranged
from fllmc.runtime.data.mixture import Mixture
from fllmc.runtime.data.packing import Packed, PackedInOrder
from fllmc.runtime.data.rows import Reading, predicted, read_row
from fllmc.runtime.data.token_files import HEADER, MAGIC
from fllmc.runtime.data.windows import Batch, HeldOut, Samples, Windows


def opened(folder: Path, mask: str = "", **changed: Any) -> Dataset:
    """The data of one section, of files under `folder`."""
    options: dict[str, Any] = {"name": "d", "batch": 2, "seq": 8, "tokenizer": "none", "vocab": 999}
    data = Data(**(options | changed))
    return open_dataset(data, folder, folder / "trained.json", mask)


def documents(lengths: list[int]) -> Documents:
    """Documents whose tokens are 1, 2, 3, ... through all of them."""
    ends = np.cumsum(lengths)
    tokens = np.arange(1, ends[-1] + 1)
    return gathered([Written(each) for each in np.split(tokens, ends[:-1])], ())


def same(one: Batch, other: Batch) -> bool:
    columns = {**one.more, "tokens": one.tokens, "targets": one.targets, "weights": one.weights}
    others = {name: other.column(name) for name in columns}
    return all(
        (found := others[name]) is not None and np.array_equal(column, found)
        for name, column in columns.items()
    )


LENGTHS = st.lists(st.integers(1, 30), min_size=2, max_size=12)


@given(LENGTHS, st.integers(1, 12))
def test_documents_in_a_window_are_kept_apart(lengths: list[int], seq: int) -> None:
    found = documents(lengths)
    of = np.repeat(np.arange(len(lengths)), lengths)
    if len(of) <= seq:
        return
    windows = Windows(found, seq, 3, reading=Reading(apart=True))
    batch = windows.batch(0, windows.per_epoch)
    places = np.arange(seq)
    for row in range(windows.per_epoch):
        tokens, starts = batch.tokens[row], batch.more["starts"][row]
        mine = of[tokens - 1]
        assert np.array_equal(mine[starts], mine), "a start in another document"
        before = starts > 0
        assert (mine[starts[before] - 1] != mine[before]).all(), "a document starts earlier"
        assert np.array_equal(batch.more["positions"][row], places - starts)
        counted = batch.weights[row] > 0
        assert np.array_equal(counted, of[tokens % len(of)] == mine) or tokens.max() == len(of)
        assert np.array_equal(batch.targets[row][counted], tokens[counted] + 1)


@given(LENGTHS, st.integers(1, 12))
def test_whole_documents_are_packed_once_each(lengths: list[int], seq: int) -> None:
    found = documents(lengths)
    total, of = sum(lengths), np.repeat(np.arange(len(lengths)), lengths)
    if max(lengths) < 2:
        return
    packed = Packed(found, 0, total, seq, 3)
    for samples in (packed, PackedInOrder(packed)):
        batch = samples.batch(0, packed.samples)
        counted = batch.weights > 0
        firsts = np.cumsum([0, *lengths[:-1]]) + 1
        wanted = np.setdiff1d(np.arange(1, total + 1), firsts)
        assert np.array_equal(np.sort(batch.targets[counted]), wanted)
        assert np.array_equal(batch.tokens[counted] + 1, batch.targets[counted])
        rows, places = np.nonzero(counted)
        begins = batch.tokens[rows, batch.more["starts"][rows, places]]
        assert np.array_equal(of[begins - 1], of[batch.tokens[counted] - 1])
    # No document of up to `seq` places is cut.
    short = [n for n in lengths if 2 <= n <= seq + 1]
    assert sum(length <= seq for length in packed.pieces.lengths.tolist()) >= len(short)


@given(st.lists(st.floats(0.01, 5), min_size=1, max_size=5), st.integers(0, 10**9))
def test_a_mixture_has_of_each_source_what_its_share_is(weights: list[float], first: int) -> None:
    parts: list[Samples] = [Windows(documents([50]), 4, n) for n in range(len(weights))]
    mixture = Mixture(parts, weights, 5)
    chosen = mixture.chosen(first, 200)
    shares = np.array(weights) / sum(weights)
    counts = np.bincount([part for part, _ in chosen], minlength=len(weights))
    assert np.abs(counts - 200 * shares).max() <= len(weights) + 1
    for part in range(len(weights)):
        numbers = [number for source, number in chosen if source == part]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else True
    cut = [*mixture.chosen(first, 77), *mixture.chosen(first + 77, 123)]
    assert cut == chosen


@given(st.integers(6, 30), st.integers(0, 50), st.booleans())
def test_a_rearranged_document_holds_the_same_tokens(length: int, sample: int, spm: bool) -> None:
    row = read_row(documents([length, length]), 0, 2 * length, Reading(apart=True))
    middles = Middles(1.0, float(spm), 901, 902, 903, seed=1)
    found = rearranged(row, middles, sample)
    for begin in (0, length):
        told = found.tokens[begin : begin + length].tolist()
        assert len(told) == length
        marks = {mark: told.index(mark) for mark in (901, 902, 903)}
        parts = [told[i + 1 :] for i in sorted(marks.values())]
        parts = [part[: next((i for i, t in enumerate(part) if t > 900), None)] for part in parts]
        if spm:
            assert told[:2] == [901, 902]
            suffix, rest = parts[1], parts[2]
            assert [*rest, *suffix] == list(range(begin + 1, begin + length - 2))
        else:
            prefix, suffix, middle = parts
            assert told[0] == 901
            assert [*prefix, *middle, *suffix] == list(range(begin + 1, begin + length - 2))
    assert np.array_equal(found.belongs, row.belongs)


def test_middles_are_filled_in_as_often_as_asked() -> None:
    row = read_row(documents([40]), 0, 33, Reading())
    middles = Middles(0.3, 0.5, 901, 902, 903, seed=1)
    told = [rearranged(row, middles, sample).tokens.tolist() for sample in range(1000)]
    changed = [tokens for tokens in told if 901 in tokens]
    assert 0.25 < len(changed) / 1000 < 0.35
    assert 0.4 < sum(tokens[1] == 902 for tokens in changed) / len(changed) < 0.62


def write_index(folder: Path, name: str, lengths: list[int]) -> None:
    """Megatron's pair of files."""
    tokens = np.arange(sum(lengths), dtype="<u2")
    (folder / f"{name}.bin").write_bytes(tokens.tobytes())
    offsets = np.cumsum([0, *lengths[:-1]]) * 2
    content = HEADER.pack(MAGIC, 1, 8, len(lengths), len(lengths) + 1)
    content += np.array(lengths, "<i4").tobytes() + offsets.astype("<i8").tobytes()
    content += np.arange(len(lengths) + 1, dtype="<i8").tobytes()
    (folder / f"{name}.idx").write_bytes(content)


def all_tokens(made: Dataset) -> list[int]:
    assert isinstance(made.train, Windows)
    return made.train.documents.tokens.whole().tolist()


def ends_of(made: Dataset) -> list[int]:
    assert isinstance(made.train, Windows)
    return made.train.documents.ends.tolist()


def test_token_files(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.arange(60, dtype="<u2").tobytes())
    (tmp_path / "b.bin").write_bytes(np.arange(60, 100, dtype="<u2").tobytes())
    np.save(tmp_path / "c.npy", np.arange(50))
    (tmp_path / "w.bin").write_bytes(np.arange(40, dtype="<u4").tobytes())
    write_index(tmp_path, "m", [40, 1, 10, 5])
    made = opened(tmp_path, source="[ab].bin")
    assert all_tokens(made) == list(range(100)) and made.train.count == 90
    assert ends_of(made) == [60, 100]
    assert all_tokens(opened(tmp_path, source="c.npy")) == list(range(50))
    assert all_tokens(opened(tmp_path, source="w.bin", stored="u32")) == list(range(40))
    indexed = opened(tmp_path, source="m.*", pack="documents", holdout=0.2)
    assert ends_of(indexed) == [40, 41, 51, 56] and indexed.train.count == 51
    ended = opened(tmp_path, source="c.npy", pack="documents", end=9)
    assert ends_of(ended) == [10, 50]


@pytest.mark.parametrize(
    ("kind", "source", "changed"),
    [
        (data_errors.BadTokenFile, "odd.bin", {}),
        (data_errors.BadTokenFile, "floats.npy", {}),
        (data_errors.BadTokenFile, "pickled.npy", {}),
        (data_errors.BadTokenFile, "short.bin", {}),
        (data_errors.BadTokenFile, "cut.bin", {}),
        (data_errors.MixedKinds, "*", {}),
        (data_errors.BadRecord, "bad.jsonl", {}),
        (data_errors.BadRecord, "two.jsonl", {}),
        (data_errors.BadRecord, "good.jsonl", {"columns": ("reward",)}),
        (data_errors.NoTextForTokenizer, "ok.bin", {"tokenizer": "bpe:300"}),
        (data_errors.UnknownToken, "ok.bin", {"end": "<eos>"}),
        (data_errors.NoSuchColumn, "ok.bin", {"mask": "reward"}),
    ],
)
def test_refused(
    tmp_path: Path, kind: type[Diagnostic], source: str, changed: dict[str, Any]
) -> None:
    (tmp_path / "ok.bin").write_bytes(bytes(200))
    (tmp_path / "odd.bin").write_bytes(bytes(33))
    np.save(tmp_path / "floats.npy", np.zeros(50))
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    write_index(tmp_path, "short", [30, 5])
    (tmp_path / "short.bin").write_bytes(bytes(20))
    write_index(tmp_path, "cut", [30, 5])
    (tmp_path / "cut.idx").write_bytes((tmp_path / "cut.idx").read_bytes()[:-1])
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"text": 1}\n')
    (tmp_path / "two.jsonl").write_text('{"text": "a", "tokens": [1]}\n')
    (tmp_path / "good.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DiagnosticError) as caught:
        opened(tmp_path, source=source, **changed)
    (found,) = caught.value.diagnostics
    assert type(found) is kind, found.message()


def test_an_index_from_elsewhere_is_no_struct_error(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(bytes(20))
    for content in (b"", MAGIC, struct.pack("<9sQBQQ", MAGIC, 1, 8, 2**62, 2**62)):
        (tmp_path / "x.idx").write_bytes(content)
        with pytest.raises(DiagnosticError):
            opened(tmp_path, source="x.bin")


def lines(folder: Path, records: list[dict[str, Any]]) -> None:
    (folder / "x.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_only_chosen_turns_are_learned(tmp_path: Path) -> None:
    turns = [
        {"role": "user", "content": "ab"},
        {"role": "assistant", "content": "xyz"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "w"},
    ]
    lines(tmp_path, [{"messages": turns}] * 3)
    chat = Chat(begin="^", open="<{role}>", close="$")
    made = opened(
        tmp_path, source="x.jsonl", tokenizer="bytes", pack="whole", chat=chat, seq=64, holdout=0.0
    )
    batch = made.train.batch(0, 1)
    learned = bytes(batch.targets[0][batch.weights[0] > 0].tolist()).decode()
    assert learned == "xyz$w$"
    whole = bytes(batch.tokens[0][batch.more["documents"][0] == 0].tolist()).decode()
    assert whole == "^<user>ab$<assistant>xyz$<user>c$<assistant>w"


def test_columns_weigh_and_come_with_the_token_that_they_are_of(tmp_path: Path) -> None:
    tokens = list(range(40))
    numbers = {"mask": [float(t % 3 == 0) for t in tokens], "reward": 0.5}
    lines(tmp_path, [{"tokens": tokens, **numbers}] * 2)
    columns = ("mask", "reward")
    made = opened(tmp_path, "mask", source="x.jsonl", columns=columns, pack="documents")
    batch = made.train.batch(0, 3)
    assert np.array_equal(batch.weights, (batch.targets % 3 == 0) & (batch.targets > 0))
    assert np.array_equal(batch.more["mask"], batch.targets % 3 == 0)
    assert (batch.more["reward"] == 0.5).all()


def test_samples_do_not_depend_on_the_batches(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.arange(600, dtype="<u2").tobytes())
    lines(tmp_path, [{"text": "hello " * n} for n in range(1, 30)])
    fim = FillMiddle(prefix=901, suffix=902, middle=903)
    parts = (
        Data("a", "a.bin", 0, 0, pack="documents", end=50, fim=fim),
        Data("b", "x.jsonl", 0, 0, pack="whole", end=0),
    )
    made = opened(
        tmp_path, source="", parts=parts, weights=(0.7, 0.3), tokenizer="bytes", pack="documents"
    )
    whole = made.train.batch(1000, 40)
    for cut in (1, 7, 39):
        one, two = made.train.batch(1000, cut), made.train.batch(1000 + cut, 40 - cut)
        joined = Batch(
            np.concatenate([one.tokens, two.tokens]),
            np.concatenate([one.targets, two.targets]),
            np.concatenate([one.weights, two.weights]),
            {n: np.concatenate([one.more[n], two.more[n]]) for n in one.more},
        )
        assert same(joined, whole)
    again = opened(
        tmp_path, source="", parts=parts, weights=(0.7, 0.3), tokenizer="bytes", pack="documents"
    )
    assert same(again.train.batch(1000, 40), whole) and again.digest() == made.digest()
    assert made.held_out is not None
    held = [made.held_out.batch(first, 3) for first in range(0, made.held_out.samples, 3)]
    assert sum(float(b.weights.sum()) for b in held) > 0


def test_every_held_out_token_that_can_be_predicted_is_once(tmp_path: Path) -> None:
    found = documents([5, 9, 1, 20, 7])
    held = HeldOut(found, 14, 6, reading=Reading(apart=True))
    batches = [held.batch(first, 2) for first in range(0, held.samples, 2)]
    targets = np.concatenate([b.targets[b.weights > 0] for b in batches])
    assert targets.tolist() == [*range(17, 36), *range(37, 43)]


def test_what_changes_the_samples_changes_the_digest(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(np.arange(600, dtype="<u2").tobytes())
    changes: list[dict[str, Any]] = [
        {},
        {"pack": "documents"},
        {"end": 3},
        {"stored": "u32", "vocab": 1 << 31},
    ]
    found = [opened(tmp_path, source="a.bin", **changed).digest() for changed in changes]
    assert len({str(each) for each in found}) == 4
    assert "reading" not in found[0]


def test_predicted_columns_have_a_place_less() -> None:
    row = read_row(documents([3, 4]), 0, 7, Reading(apart=True))
    found = predicted(row, True)
    assert found["tokens"].tolist() == [1, 2, 3, 4, 5, 6]
    assert found["weights"].tolist() == [1, 1, 0, 1, 1, 1]
    assert found["starts"].tolist() == [0, 0, 0, 3, 3, 3]
    assert found["positions"].tolist() == [0, 1, 2, 0, 1, 2]
    assert found["documents"].tolist() == [0, 0, 0, 1, 1, 1]


def test_joined_arrays_read_as_one() -> None:
    parts = [np.arange(3), np.empty(0, int), np.arange(3, 10)]
    joined = Joined(parts)
    assert len(joined) == 10
    for start in range(10):
        for stop in range(start, 13):
            assert joined.read(start, stop).tolist() == list(range(start, min(stop, 10)))
