"""A source made ready: its files by their kind, its tokens, and where what is held out begins."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.settings import Data
from fllmc.runtime import data_errors, errors
from fllmc.runtime.data import records, token_files
from fllmc.runtime.data.documents import Documents, Joined, Written, gathered
from fllmc.runtime.data.sources import Corpus, parts_of, read_source, source_files
from fllmc.runtime.data.tokenizers import FileTokenizer, NoTokenizer, Tokenizer


class Opened(msgspec.Struct, frozen=True):
    """A source before it is encoded: a corpus of text, records, or tokens.

    `texts` are the documents of text, one for a source that is read as a stream.
    """

    data: Data
    sha256: str
    train_text: bytes = b""
    held_text: bytes = b""
    texts: tuple[bytes, ...] = ()
    records: tuple[records.Record, ...] = ()
    paths: tuple[Path, ...] = ()

    @property
    def kind(self) -> str:
        """What the source holds."""
        return "tokens" if self.paths else "records" if self.records else "text"


class Tokenized(msgspec.Struct, frozen=True):
    """A source's tokens; those from `cut` on are held out."""

    documents: Documents
    cut: int


def open_source(data: Data, base: Path) -> Opened:
    """Read what the source names, or find its files of tokens."""
    folder = base / data.folder
    kinds = _kinds(data, folder)
    if "tokens" in kinds:
        paths = tuple(
            path for path in source_files(data.source, folder, data.span) if _kind(path) == "tokens"
        )
        return Opened(data, token_files.digest_of(paths), paths=paths)
    if "records" in kinds:
        files = source_files(data.source, folder, data.span)
        corpus = read_source(data.source, folder, data.span)
        found = records.read_records(files, data.columns, data.span)
        if not found:
            raise DiagnosticError(errors.SourceEmpty(data.span, data.source, len(files)))
        held = _held(len(found), data)
        text = "\n".join(record.said() for record in found[: len(found) - held])
        return Opened(data, corpus.sha256, text.encode(), records=tuple(found))
    if data.pack == "stream" and data.end is None:
        corpus = read_source(data.source, folder, data.span)
        train, held_out = corpus.split(data.holdout, data.span)
        return Opened(data, corpus.sha256, train, held_out)
    texts = parts_of(data.source, folder, data.span)
    corpus = Corpus(data.source, b"".join(texts), len(texts))
    train, held_out = corpus.split(data.holdout, data.span)
    return Opened(data, corpus.sha256, train, held_out, tuple(texts))


def _kinds(data: Data, folder: Path) -> tuple[str, ...]:
    if data.source.startswith("builtin:"):
        return ("text",)
    paths = source_files(data.source, folder, data.span)
    kinds = tuple(sorted({_kind(path) for path in paths} - {"index"}))
    if len(kinds) > 1:
        mixed = data_errors.MixedKinds(data.span, data.source, ", ".join(kinds))
        raise DiagnosticError(mixed)
    return kinds


def _kind(path: Path) -> str:
    if path.suffix in token_files.SUFFIXES:
        return "tokens"
    if path.suffix == token_files.INDEX:
        return "index"
    return "records" if path.suffix == records.SUFFIX else "text"


def _held(count: int, data: Data) -> int:
    """How many of some documents are held out."""
    if not 0.0 <= data.holdout < 1.0:
        raise DiagnosticError(errors.BadHoldout(data.span, data.holdout))
    return min(count - 1, max(1, int(count * data.holdout))) if data.holdout > 0 else 0


def token_of(mark: int | str | None, tokenizer: Tokenizer, data: Data) -> int | None:
    """The number of a token that is written as a number or as its text."""
    if mark is None or isinstance(mark, int):
        return mark
    if isinstance(tokenizer, FileTokenizer):
        number = tokenizer.model.token_to_id(mark)
        if number is not None:
            return number
    raise DiagnosticError(data_errors.UnknownToken(data.span, mark, tokenizer.name))


def tokenize(opened: Opened, tokenizer: Tokenizer) -> Tokenized:
    """The source's tokens, and where what is held out begins: between documents, if apart."""
    data = opened.data
    end = token_of(data.end, tokenizer, data)
    if opened.paths:
        apart = data.pack != "stream" or data.fim is not None
        found = token_files.open_tokens(opened.paths, data.stored, end, apart, data.span)
        return Tokenized(found, _cut(found, data))
    if opened.records:
        chat = data.chat
        turns = records.Turns(chat.begin, chat.open, chat.close, chat.learn)
        made = [
            records.written(record, tokenizer, turns, end, data.columns)
            for record in opened.records
        ]
        cut = len(made) - _held(len(made), data)
        return Tokenized(gathered(made, data.columns), sum(len(m.tokens) for m in made[:cut]))
    if not opened.texts:
        parts = [tokenizer.encode(text) for text in (opened.train_text, opened.held_text)]
        ends = np.unique([len(parts[0]) + len(parts[1])]).astype(np.int64)
        return Tokenized(Documents(Joined(parts), ends), len(parts[0]))
    encoded = [tokenizer.encode(text) for text in opened.texts]
    if end is not None:
        encoded = [
            np.append(each.astype(np.uint32), np.uint32(end)) for each in encoded if len(each)
        ]
    found = gathered([Written(each) for each in encoded], ())
    return Tokenized(found, _cut(found, data))


def _cut(documents: Documents, data: Data) -> int:
    """Where what is held out begins: at a document's end if one is held out whole."""
    count = len(documents.tokens)
    if not 0.0 <= data.holdout < 1.0:
        raise DiagnosticError(errors.BadHoldout(data.span, data.holdout))
    cut = count - int(count * data.holdout)
    behind = documents.first_behind(cut)
    return behind if cut < behind < count else cut


def no_text(opened: Opened, tokenizer: str) -> bool:
    """Whether a tokenizer that must be trained has nothing to be trained on."""
    return tokenizer.startswith("bpe:") and not opened.train_text


def decodes(tokenizer: Tokenizer) -> bool:
    """Whether text can be made of tokens."""
    return not isinstance(tokenizer, NoTokenizer)
