"""Sources, tokenizers, windows and the baseline."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fllmc.ir.diagnostics import Diagnostic, DiagnosticError
from fllmc.ir.settings import Data
from fllmc.runtime import errors
from fllmc.runtime.data import baseline, sources
from fllmc.runtime.data.dataset import Dataset, open_dataset
from fllmc.runtime.data.documents import plain
from fllmc.runtime.data.tokenizers import train_bpe
from fllmc.runtime.data.windows import HeldOut, Windows

TEXT = "The quick brown fox jumps over the lazy dög.\n" * 60


def refused(make: Callable[[], object]) -> Diagnostic:
    """The one diagnostic that `make` raises, all its words filled in."""
    with pytest.raises(DiagnosticError) as caught:
        make()
    (found,) = caught.value.diagnostics
    assert "{" not in " ".join([found.message(), found.primary(), *found.notes(), *found.helps()])
    return found


def dataset(folder: Path, source: str, tokenizer: str = "bytes", **changed: Any) -> Dataset:
    """A dataset of files under `folder`."""
    options: dict[str, Any] = {"seq": 8, "vocab": 300, "seed": 1, "holdout": 0.1} | changed
    data = Data("data", source, 1, tokenizer=tokenizer, **options)
    return open_dataset(data, folder, folder / "trained.json")


def tokens_of(made: Dataset) -> npt.NDArray[Any]:
    """The tokens that are trained on."""
    assert isinstance(made.train, Windows)
    return made.train.documents.tokens.read(0, made.train.count)


def test_pydocs() -> None:
    corpus = sources.read_source("builtin:pydocs", Path())
    assert len(corpus.data) > 300_000 and b"The Python" in corpus.data
    assert corpus.sha256 == sources.read_source("builtin:pydocs", Path("elsewhere")).sha256
    train, held_out = corpus.split(0.1)
    assert train + held_out == corpus.data
    assert len(held_out) == int(len(corpus.data) * 0.1)


def test_letter_pairs_on_pydocs() -> None:
    loss = baseline.bigram_baseline(*sources.read_source("builtin:pydocs", Path()).split(0.1))
    assert 2.25 < loss < 2.40


def test_stdlib() -> None:
    corpus = sources.read_source("builtin:stdlib", Path())
    assert corpus.files > 100 and b"def " in corpus.data


def test_globs_are_sorted_and_relative(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.txt").write_text(name)
    assert sources.read_source("*.txt", tmp_path).data == b"a\n\nb\n\nc"
    assert sources.read_source("b.txt", tmp_path).data == b"b"
    assert sources.read_source(str(tmp_path / "c.txt"), Path("/")).data == b"c"


def test_a_name_with_brackets_is_a_file_first(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert sources.read_source("a[1].txt", tmp_path).data == b"x"


def test_the_cut_keeps_characters_whole() -> None:
    data = "ab€€€".encode()
    for holdout in (0.1, 0.3, 0.5, 0.7, 0.9):
        train, held_out = sources.Corpus("x", data, 1).split(holdout)
        assert (train.decode() + held_out.decode()).encode() == data


def test_bytes(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXT)
    made = dataset(tmp_path, "x.txt")
    assert tokens_of(made).tobytes() == made.train_text
    assert made.tokenizer.decode(list(made.train_text)) == made.train_text.decode()


def test_bpe_is_trained_once_and_the_same_everywhere(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(TEXT)
    made = dataset(tmp_path, "x.txt", "bpe:280")
    assert 256 < made.tokenizer.vocab <= 280
    assert made.tokenizer.decode(tokens_of(made).tolist()) == made.train_text.decode()
    assert made.train.count < len(made.train_text)
    again = dataset(tmp_path, "x.txt", "bpe:280")
    assert again.digest() == made.digest()
    byname = dataset(tmp_path, "x.txt", "trained.json")
    assert np.array_equal(tokens_of(byname), tokens_of(made))
    other = tmp_path / "other.json"
    program = (
        "import sys; from pathlib import Path; from fllmc.runtime.data.tokenizers import train_bpe;"
        "train_bpe(Path(sys.argv[1]).read_bytes(), 280, Path(sys.argv[2]))"
    )
    text = tmp_path / "train.txt"
    text.write_bytes(made.train_text)
    subprocess.run([sys.executable, "-c", program, str(text), str(other)], check=True)
    assert other.read_bytes() == (tmp_path / "trained.json").read_bytes()


def test_long_lines_encode_to_the_same_text(tmp_path: Path) -> None:
    tokenizer = train_bpe(TEXT.encode(), 300, tmp_path / "t.json")
    text = ("ö x" * 50_000 + "\n") * 2
    assert tokenizer.decode(tokenizer.encode(text.encode()).tolist()) == text


@pytest.mark.parametrize(
    ("kind", "source", "tokenizer", "changed"),
    [
        (errors.SourceMissing, "none*.txt", "bytes", {}),
        (errors.SourceMissing, "missing.txt", "bytes", {}),
        (errors.SourceMissing, "folder", "bytes", {}),
        (errors.UnknownBuiltin, "builtin:pydoc", "bytes", {}),
        (errors.SourceEmpty, "empty.txt", "bytes", {}),
        (errors.NotUtf8, "latin.txt", "bpe:300", {}),
        (errors.TokenizerUnreadable, "x.txt", "missing.json", {}),
        (errors.TokenizerUnreadable, "x.txt", "bad.json", {}),
        (errors.UnknownTokenizer, "x.txt", "bpe:many", {}),
        (errors.UnknownTokenizer, "x.txt", "words", {}),
        (errors.BpeTooSmall, "x.txt", "bpe:256", {}),
        (errors.VocabTooSmall, "x.txt", "bytes", {"vocab": 100}),
        (errors.VocabTooSmall, "x.txt", "bpe:290", {"vocab": 256}),
        (errors.TooFewTokens, "x.txt", "bytes", {"seq": 100_000}),
        (errors.TooFewTokens, "one.txt", "bytes", {"seq": 1}),
        (errors.TooFewTokens, "x.txt", "bytes", {"holdout": 1e-9}),
        (errors.BadHoldout, "x.txt", "bytes", {"holdout": 1.0}),
        (errors.BadHoldout, "x.txt", "bytes", {"holdout": float("nan")}),
    ],
)
def test_refused(
    tmp_path: Path, kind: type[Diagnostic], source: str, tokenizer: str, changed: dict[str, Any]
) -> None:
    (tmp_path / "x.txt").write_text(TEXT)
    (tmp_path / "one.txt").write_text("1")
    (tmp_path / "empty.txt").write_bytes(b"")
    (tmp_path / "latin.txt").write_bytes("dög".encode("latin-1") * 50)
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "folder").mkdir()
    found = refused(lambda: dataset(tmp_path, source, tokenizer, **changed))
    assert type(found) is kind


def test_an_unreadable_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.txt").write_text(TEXT)

    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)
    found = refused(lambda: dataset(tmp_path, "x.txt"))
    assert isinstance(found, errors.SourceUnreadable) and "Permission denied" in found.message()


def test_a_python_without_the_module_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    found = refused(lambda: sources.read_source("builtin:pydocs", Path()))
    assert isinstance(found, errors.BuiltinAbsent)


def test_an_unwritable_tokenizer_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    found = refused(lambda: train_bpe(TEXT.encode(), 300, tmp_path / "file" / "t.json"))
    assert isinstance(found, errors.TokenizerUnwritable)


@given(st.integers(2, 200), st.integers(1, 20), st.integers(0, 5))
def test_an_epoch_has_no_token_twice(count: int, seq: int, epoch: int) -> None:
    if count <= seq:
        return
    windows = Windows(plain(np.arange(count, dtype=np.uint16)), seq, seed=5)
    batch = windows.batch(epoch * windows.per_epoch, windows.per_epoch)
    assert len(np.unique(batch.tokens)) == windows.per_epoch * seq
    assert np.array_equal(batch.targets, batch.tokens + 1) and batch.targets.max() < count
    # At most the window that the phase may take away is left out.
    assert windows.per_epoch >= max(1, (count - 1) // seq - 1)


@given(st.integers(0, 60), st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_samples_do_not_depend_on_the_batches(first: int, counts: list[int]) -> None:
    windows = Windows(plain(np.arange(100, dtype=np.uint8)), 8, seed=2)
    whole = windows.batch(first, sum(counts))
    starts = np.cumsum([first, *counts])
    parts = [windows.batch(int(s), n).tokens for s, n in zip(starts[:-1], counts, strict=True)]
    assert np.array_equal(np.concatenate(parts), whole.tokens)


def test_epochs_and_seeds_differ() -> None:
    tokens = np.arange(1000, dtype=np.uint16)
    windows, other = (Windows(plain(tokens), 8, seed=seed) for seed in (2, 3))
    n = windows.per_epoch
    orders = [w.batch(f, n).tokens for w, f in ((windows, 0), (windows, n), (other, 0))]
    assert not any(np.array_equal(orders[i], orders[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
    assert len({int(o.min()) for o in orders}) > 1, "the phase never moves"


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 5))
def test_validation_counts_every_token_once(count: int, seq: int, size: int) -> None:
    tokens = np.arange(1, count + 1, dtype=np.uint8)
    held_out = HeldOut(plain(np.arange(count + 1, dtype=np.uint8)), 1, seq)
    batches = list(held_out.batches(size))
    counted = np.concatenate([b.targets[b.weights > 0] for b in batches])
    assert np.array_equal(counted, tokens)
    inputs = np.concatenate([b.tokens[b.weights > 0] for b in batches])
    assert np.array_equal(inputs, tokens - 1)
    assert {b.tokens.shape for b in batches} == {(size, seq)}
    assert max(int(b.tokens.max()) for b in batches) <= count


def test_the_baseline_is_a_distribution_and_is_chosen_on_training_text_only() -> None:
    train, valid = TEXT.encode(), b"fox over dog"
    model = baseline.pair_model(train, 0.9)
    assert np.allclose(model.sum(axis=1), 1) and model.min() > 0
    losses = [
        baseline.mean_nll(baseline.pair_model(train, w), train, valid) for w in baseline.WEIGHTS
    ]
    found = baseline.bigram_baseline(train, valid)
    assert any(abs(found - loss) < 1e-12 for loss in losses)
    by_hand = -np.mean(
        [np.log(model[a, b]) for a, b in zip(train[-1:] + valid[:-1], valid, strict=True)]
    )
    assert baseline.mean_nll(model, train, valid) == pytest.approx(by_hand)
    assert baseline.bigram_baseline(b"", valid) == float("inf")
    assert baseline.bigram_baseline(b"abab", b"a") < float("inf")
