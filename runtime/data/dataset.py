"""A data section made ready: the samples to train on and those to validate on."""

from __future__ import annotations

from pathlib import Path

import msgspec

from fllmc.ir.diagnostics import DiagnosticError
from fllmc.ir.span import NOWHERE, Span
from fllmc.runtime import errors
from fllmc.runtime.data.sources import Corpus, read_source
from fllmc.runtime.data.tokenizers import Tokenizer, Tokens, choose_tokenizer
from fllmc.runtime.data.windows import HeldOut, Windows


class Dataset(msgspec.Struct, frozen=True):
    """What a run trains and validates on, and how to tell it from any other."""

    corpus: Corpus
    tokenizer: Tokenizer
    train_text: bytes
    held_text: bytes
    train: Windows
    held_out: HeldOut | None

    def digest(self) -> dict[str, str | int]:
        """Facts for a manifest: two runs on equal facts see equal batches."""
        return {
            "source": self.corpus.source,
            "sha256": self.corpus.sha256,
            "tokenizer": self.tokenizer.name,
            "tokenizer_sha256": self.tokenizer.sha256,
            "train_bytes": len(self.train_text),
            "held_out_bytes": len(self.held_text),
            "train_tokens": len(self.train.tokens),
            "held_out_tokens": self.held_out.count if self.held_out else 0,
        }


def open_dataset(
    source: str,
    tokenizer: str,
    *,
    seq: int,
    vocab: int,
    seed: int,
    holdout: float,
    folder: Path,
    trained: Path,
    span: Span = NOWHERE,
) -> Dataset:
    """Read, split, encode and window a source.

    `folder` is what paths are relative to, `trained` where a trained BPE is stored or found. With
    `holdout` 0 nothing is held out.
    """
    corpus = read_source(source, folder, span)
    train_text, held_text = corpus.split(holdout, span)
    if tokenizer != "bytes":
        _require_utf8(corpus, tokenizer, span)
    chosen = choose_tokenizer(tokenizer, train_text, folder, trained, span)
    tokens = chosen.encode(train_text)
    held_tokens = chosen.encode(held_text)
    for part in (tokens, held_tokens):
        require_vocab(part, vocab, chosen.name, span)
    windows = Windows(tokens, seq, seed, source, span)
    held_out = None
    if holdout > 0:
        held_out = HeldOut(held_tokens, int(tokens[-1]), seq, source, span)
    return Dataset(corpus, chosen, train_text, held_text, windows, held_out)


def require_vocab(tokens: Tokens, vocab: int, tokenizer: str, span: Span = NOWHERE) -> None:
    """Refuse tokens that the model's `vocab` dim has no row for."""
    largest = int(tokens.max(initial=0))
    if largest >= vocab:
        raise DiagnosticError(errors.VocabTooSmall(span, tokenizer, largest, vocab))


def _require_utf8(corpus: Corpus, tokenizer: str, span: Span) -> None:
    try:
        corpus.data.decode()
    except UnicodeDecodeError as error:
        value = f"0x{corpus.data[error.start]:02x}"
        refused = errors.NotUtf8(span, corpus.source, error.start, value, tokenizer)
        raise DiagnosticError(refused) from error
