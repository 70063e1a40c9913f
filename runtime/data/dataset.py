"""A data section made ready: the samples to train on and those to validate on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.settings import Data
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import data_errors, errors
from fllmc.runtime.data.middle import Middles
from fllmc.runtime.data.mixture import Mixture, OneByOne
from fllmc.runtime.data.opening import Opened, Tokenized, no_text, open_source, token_of, tokenize
from fllmc.runtime.data.packing import Packed, PackedInOrder
from fllmc.runtime.data.rows import GIVEN, Reading
from fllmc.runtime.data.tokenizers import Tokenizer, choose_tokenizer
from fllmc.runtime.data.windows import HeldOut, Samples, Windows


class Validation(Samples, Protocol):
    """Samples that are validated on, each once."""

    samples: int


class Dataset(msgspec.Struct, frozen=True):
    """What a run trains and validates on, and how to tell it from any other.

    `train_text` and `held_text` are empty where the data is no text.
    """

    data: Data
    sha256: str
    tokenizer: Tokenizer
    train_text: bytes
    held_text: bytes
    train: Samples
    held_out: Validation | None
    mask: str = ""

    def digest(self) -> dict[str, str | int]:
        """Facts for a manifest: two runs on equal facts see equal batches."""
        return {
            "source": source_text(self.data),
            "sha256": self.sha256,
            "tokenizer": self.tokenizer.name,
            "tokenizer_sha256": self.tokenizer.sha256,
            "train_bytes": len(self.train_text),
            "held_out_bytes": len(self.held_text),
            "train_tokens": self.train.count,
            "held_out_tokens": self.held_out.count if self.held_out else 0,
            **reading_fact(self.data, self.mask),
        }


def source_text(data: Data) -> str:
    """The source, or the sources of a mixture with their weights."""
    pairs = zip(data.parts, data.weights, strict=True)
    return data.source or ", ".join(f"{part.source} * {weight:g}" for part, weight in pairs)


def reading_fact(data: Data, mask: str) -> dict[str, str | int]:
    """A hash of all that changes how a source is read, where anything is not as by default."""
    plain = Data("", "", 0, 0)
    kept = ("pack", "end", "stored", "columns", "chat", "fim")
    of = [{name: getattr(each, name) for name in kept} for each in (data, *data.parts)]
    default = {name: getattr(plain, name) for name in kept}
    if not mask and not data.parts and of == [default]:
        return {}
    seeds = [(part.seed, part.holdout) for part in data.parts]
    content = msgspec.json.encode((of, data.weights, seeds, mask))
    return {"reading": hashlib.sha256(content).hexdigest()}


def open_dataset(data: Data, base: Path, trained: Path, mask: str = "") -> Dataset:
    """Read, split, encode and cut the sources of a data section into samples.

    `base` is what the section's folder is relative to, `trained` where a trained BPE is stored or
    found. With `holdout` 0 nothing is held out. `mask` is the column that weighs tokens.
    """
    parts = data.parts or (data,)
    opened = [open_source(part, base) for part in parts]
    train_text = b"".join(each.train_text for each in opened)
    held_text = b"".join(each.held_text for each in opened)
    for each in opened:
        _require_text(each, data.tokenizer)
    folder = base / data.folder
    tokenizer = choose_tokenizer(data.tokenizer, train_text, folder, trained, data.span, data.vocab)
    _require_columns(data, mask)
    made = [_samples(each, tokenizer, data, mask) for each in opened]
    sha256 = opened[0].sha256
    train, held_out = made[0]
    if data.parts:
        sha256 = hashlib.sha256("".join(each.sha256 for each in opened).encode()).hexdigest()
        train = Mixture([each for each, _ in made], data.weights, data.seed)
        held = [each for _, each in made if each is not None]
        held_out = OneByOne(held, [each.samples for each in held]) if held else None
    return Dataset(data, sha256, tokenizer, train_text, held_text, train, held_out, mask)


def _require_text(opened: Opened, tokenizer: str) -> None:
    data = opened.data
    if no_text(opened, tokenizer):
        raise DiagnosticError(data_errors.NoTextForTokenizer(data.span, tokenizer, data.source))
    if tokenizer != "bytes" and opened.kind == "text":
        _require_utf8(opened.train_text + opened.held_text, data.source, tokenizer, data.span)


def _samples(
    opened: Opened, tokenizer: Tokenizer, whole: Data, mask: str
) -> tuple[Samples, Validation | None]:
    """One source's samples: those of the whole section's length."""
    data = opened.data
    tokens = tokenize(opened, tokenizer)
    require_vocab(tokens.documents.largest(), whole.vocab, tokenizer.name, data.span)
    reading = Reading(data.pack != "stream", mask, whole.columns)
    middles = _middles(data, tokenizer, whole)
    train = training(tokens, data, whole.seq, reading, middles)
    return train, validation(tokens, data, whole.seq, reading)


def training(
    tokens: Tokenized, data: Data, seq: int, reading: Reading, middles: Middles | None
) -> Samples:
    """What is trained on."""
    documents, where = tokens.documents, (data.source, data.span)
    if data.pack == "whole":
        given = (documents, 0, tokens.cut, seq, data.seed)
        return Packed(*given, *where, reading=reading, middles=middles)
    given = (documents, seq, data.seed)
    return Windows(*given, *where, stop=tokens.cut, reading=reading, middles=middles)


def validation(tokens: Tokenized, data: Data, seq: int, reading: Reading) -> Validation | None:
    """What is validated on; nothing of it is rearranged."""
    documents, where = tokens.documents, (data.source, data.span)
    if data.holdout <= 0:
        return None
    if data.pack == "whole":
        stop = len(documents.tokens)
        given = (documents, tokens.cut, stop, seq, data.seed)
        return PackedInOrder(Packed(*given, *where, reading=reading))
    return HeldOut(documents, tokens.cut, seq, *where, reading)


def _middles(data: Data, tokenizer: Tokenizer, whole: Data) -> Middles | None:
    fim = data.fim
    if fim is None:
        return None
    marks = [token_of(mark, tokenizer, data) for mark in (fim.prefix, fim.suffix, fim.middle)]
    prefix, suffix, middle = (0 if mark is None else mark for mark in marks)
    require_vocab(max(prefix, suffix, middle), whole.vocab, tokenizer.name, data.span)
    return Middles(fim.rate, fim.spm, prefix, suffix, middle, data.seed)


def require_vocab(largest: int, vocab: int, tokenizer: str, span: Span = NOWHERE) -> None:
    """Refuse tokens that the model's `vocab` dim has no row for."""
    if largest >= vocab:
        raise DiagnosticError(errors.VocabTooSmall(span, tokenizer, largest, vocab))


def _require_columns(data: Data, mask: str) -> None:
    parts: Sequence[Data] = data.parts or (data,)
    known = (*GIVEN, *dict.fromkeys(name for part in parts for name in part.columns))
    if mask and mask not in known[len(GIVEN) :]:
        shown = ", ".join(known[len(GIVEN) :]) or "none of its own"
        raise DiagnosticError(data_errors.NoSuchColumn(data.span, mask, shown))


def _require_utf8(text: bytes, source: str, tokenizer: str, span: Span) -> None:
    try:
        text.decode()
    except UnicodeDecodeError as error:
        value = f"0x{text[error.start]:02x}"
        refused = errors.NotUtf8(span, source, error.start, value, tokenizer)
        raise DiagnosticError(refused) from error
